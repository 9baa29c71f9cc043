// Draws each figure that the page carries when it comes into view, since one in a part that is
// folded has no width; all of them, with everything open, at the width of the paper to be printed.
const PAPER_PX = 670;
const figures = JSON.parse(document.getElementById("figures").textContent);
const byTouch = matchMedia("(pointer: coarse)").matches;
const options = {
  responsive: true,
  displaylogo: false,
  displayModeBar: byTouch ? false : "hover",
  modeBarButtonsToRemove: ["lasso2d", "select2d", "sendChartToCloud", "sendDataToCloud"],
};
const draw = (plot) => {
  if (plot.classList.contains("js-plotly-plot")) return Plotly.Plots.resize(plot);
  const { data, layout } = figures[plot.id];
  // A finger that moves over a figure scrolls the page.
  return Plotly.newPlot(plot, data, byTouch ? { ...layout, dragmode: false } : layout, options);
};
const drawVisible = (part) => [...part.querySelectorAll(".plot")]
  .filter((plot) => !plot.closest("details:not([open])"))
  .forEach(draw);
for (const part of document.querySelectorAll("details"))
  part.addEventListener("toggle", () => part.open && drawVisible(part));
drawVisible(document);

const relayout = (size) => document.querySelectorAll(".js-plotly-plot").forEach(
  (plot) => Plotly.relayout(plot, size)
);
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const part of opened) part.open = true;
  drawVisible(document);
  relayout({ width: PAPER_PX, autosize: false });
});
addEventListener("afterprint", () => {
  relayout({ width: null, autosize: true });
  for (const part of opened) part.open = false;
});
