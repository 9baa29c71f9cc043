// Draws the figures that the page carries, and draws them again at the width of the paper when it
// is printed.
const PAPER_PX = 670;
const figures = JSON.parse(document.getElementById("figures").textContent);
const byTouch = matchMedia("(pointer: coarse)").matches;
const options = {
  responsive: true,
  displaylogo: false,
  displayModeBar: byTouch ? false : "hover",
  modeBarButtonsToRemove: ["lasso2d", "select2d", "sendChartToCloud", "sendDataToCloud"],
};
for (const [id, { data, layout }] of Object.entries(figures)) {
  // A finger that moves over a figure scrolls the page.
  Plotly.newPlot(id, data, byTouch ? { ...layout, dragmode: false } : layout, options);
}
const relayout = (size) => document.querySelectorAll(".js-plotly-plot").forEach(
  (plot) => Plotly.relayout(plot, size)
);
addEventListener("beforeprint", () => relayout({ width: PAPER_PX, autosize: false }));
addEventListener("afterprint", () => relayout({ width: null, autosize: true }));
