// Draws every figure of the page in the colours of the reader's screen.
(() => {
  "use strict";
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 640px)");
  const palette = JSON.parse(document.getElementById("palette").textContent);
  const holders = [...document.querySelectorAll(".figure")];

  const read = (holder, isDark) => {
    let text = document.getElementById(holder.id + "-data").textContent;
    if (isDark) for (const [from, to] of Object.entries(palette)) text = text.replaceAll(from, to);
    return JSON.parse(text);
  };

  const template = (printing) => {
    const css = getComputedStyle(document.documentElement);
    const color = (name, print) => (printing ? print : css.getPropertyValue("--" + name).trim());
    const axis = {
      gridcolor: color("grid", "#dddddd"), zerolinecolor: color("line", "#bbbbbb"), linecolor: color("line", "#bbbbbb"),
      tickfont: { color: color("soft", "#444444") }, title: { font: { size: 12.5, color: color("soft", "#444444") }, standoff: 8 },
      zeroline: false, ticks: "",
    };
    return { layout: {
      font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: color("ink", "#000000") },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", xaxis: axis, yaxis: axis,
      modebar: { bgcolor: "rgba(0,0,0,0)", color: color("soft", "#444444"), activecolor: color("accent", "#00507d") },
      legend: { font: { size: 12.5 }, bgcolor: "rgba(0,0,0,0)" },
      hoverlabel: { bgcolor: color("card", "#ffffff"), bordercolor: color("line", "#bbbbbb"), font: { color: color("ink", "#000000") } },
    } };
  };

  const paint = (isDark) => {
    for (const mark of document.querySelectorAll("[data-color]")) {
      mark.style.background = isDark ? palette[mark.dataset.color] : mark.dataset.color;
    }
  };

  const config = (holder, touch) => ({
    responsive: true, displaylogo: false,
    // plotly.js 4 would offer to send the data to its makers' server.
    showSendToCloud: false, plotlyServerURL: "",
    displayModeBar: !touch, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
    toImageButtonOptions: { filename: holder.dataset.name, scale: 3 },
  });

  const fit = (layout) => {
    if (!narrow.matches) return;
    layout.margin = { ...layout.margin, l: 44, r: 8 };
    if (layout.meta?.narrow_range) layout.xaxis = { ...layout.xaxis, range: layout.meta.narrow_range };
    for (const key of Object.keys(layout)) {
      if (/^[xy]axis/.test(key)) layout[key] = { ...layout[key], nticks: Math.min(layout[key].nticks || 6, 6) };
    }
  };

  const draw = (printing) => {
    const isDark = dark.matches && !printing;
    // On a phone a drag must scroll the page, not zoom the figure.
    const touch = narrow.matches || matchMedia("(pointer: coarse)").matches;
    paint(isDark);
    // In a closed fold a figure has no width to be drawn into: it waits until the fold opens.
    for (const holder of holders.filter((each) => each.clientWidth > 0)) {
      const { data, layout } = read(holder, isDark);
      Object.assign(layout, { autosize: true, template: template(printing), dragmode: touch ? false : "zoom" });
      if (printing) layout.width = Math.min(holder.clientWidth, 660);
      fit(layout);
      Plotly.react(holder, data, layout, config(holder, touch));
    }
  };

  // While the run lasts: load the page again, unless nobody looks at it or somebody is just using it.
  const keepUp = (seconds) => {
    let touched = 0;
    for (const kind of ["pointermove", "pointerdown", "keydown", "wheel"]) addEventListener(kind, () => touched = Date.now());
    const reload = () => {
      if (document.hidden || Date.now() - touched < 5000) setTimeout(reload, 1000);
      else location.reload();
    };
    setTimeout(reload, 1000 * seconds);
  };

  draw(false);
  if (document.body.dataset.refresh) keepUp(Number(document.body.dataset.refresh));
  addEventListener("toggle", (event) => event.target.open && draw(false), true);
  dark.addEventListener("change", () => draw(false));
  narrow.addEventListener("change", () => draw(false));
  addEventListener("beforeprint", () => draw(true));
  addEventListener("afterprint", () => draw(false));
})();
