"use strict";
// Surfaces exist only while they can be seen: browsers keep no more than some sixteen of them.
(() => {
  const CONFIG = {
    displaylogo: false,
    responsive: true,
    scrollZoom: false, // the wheel belongs to the page
    modeBarButtons: [["toImage", "resetCameraDefault3d"]], // of the others, one sends the data away
  };
  const STEP = Math.PI / 24;
  const NEARER = 1 / 1.15;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const figures = new Map(); // of scenes: data and layout, which keeps the camera
  const shown = new Set();

  const groupOf = scene => scene.closest(".surfaces");
  const scenesOf = group => [...group.querySelectorAll(".scene")];

  function figureOf(scene) {
    if (!figures.has(scene)) {
      const figure = JSON.parse(scene.parentElement.querySelector("script").textContent);
      figure.home = structuredClone(figure.layout.scene.camera);
      figures.set(scene, figure);
    }
    return figures.get(scene);
  }

  // What was chosen, in the colours of the page.
  function prepare({data, layout}, {split, height}) {
    const style = getComputedStyle(document.documentElement);
    const [ink, soft, grid, paper] = ["--ink", "--soft", "--grid", "--paper"].map(name => style.getPropertyValue(name).trim());
    for (const trace of data) {
      trace.visible = trace.meta.split === split;
      trace.z = trace.meta.z ? trace.meta.z[height] : trace.z;
    }
    const {axis, names} = layout.meta[height];
    const flag = {ax: 0, ay: -28, arrowhead: 0, arrowwidth: 1, arrowcolor: ink, bgcolor: paper, bordercolor: ink, borderpad: 2};
    layout.scene.annotations = names[split].map(name => ({...flag, ...name}));
    layout.font = {color: ink, family: getComputedStyle(document.body).fontFamily, size: 12};
    layout.modebar = {bgcolor: "rgba(0,0,0,0)", color: soft, activecolor: ink};
    for (const name of ["xaxis", "yaxis", "zaxis"]) {
      Object.assign(layout.scene[name], {color: ink, gridcolor: grid, zerolinecolor: grid});
    }
    Object.assign(layout.scene.zaxis, axis);
  }

  function show(scene) {
    const figure = figureOf(scene);
    prepare(figure, groupOf(scene).dataset);
    if (shown.has(scene)) {
      Plotly.react(scene, figure.data, figure.layout, CONFIG);
      return;
    }
    shown.add(scene);
    Plotly.newPlot(scene, figure.data, figure.layout, CONFIG);
    scene.on("plotly_relayouting", event => follow(scene, event["scene.camera"]));
    scene.on("plotly_relayout", event => follow(scene, event["scene.camera"]));
  }

  function hide(scene) {
    if (shown.delete(scene)) {
      Plotly.purge(scene);
    }
  }

  function look(scene, camera) {
    figureOf(scene).layout.scene.camera = structuredClone(camera);
    if (shown.has(scene)) {
      Plotly.relayout(scene, {"scene.camera": structuredClone(camera)});
    }
  }

  // The scene that is under the hand leads, and the others of its group follow.
  let leading = null;
  function follow(scene, camera) {
    if (camera && scene === leading) {
      scenesOf(groupOf(scene)).filter(other => other !== scene).forEach(other => look(other, camera));
    }
  }

  // The eye on its sphere around the point looked at.
  function turned({eye, center}, right, up, far) {
    const [x, y, z] = ["x", "y", "z"].map(axis => eye[axis] - center[axis]);
    const distance = Math.hypot(x, y, z);
    const around = Math.atan2(y, x) + right * STEP;
    const above = Math.max(-1.5, Math.min(1.5, Math.asin(z / distance) + up * STEP));
    return {
      x: center.x + far * distance * Math.cos(above) * Math.cos(around),
      y: center.y + far * distance * Math.cos(above) * Math.sin(around),
      z: center.z + far * distance * Math.sin(above),
    };
  }

  function pressed(event) {
    const moves = {
      ArrowLeft: [-1, 0, 1], ArrowRight: [1, 0, 1], ArrowUp: [0, 1, 1], ArrowDown: [0, -1, 1],
      "+": [0, 0, NEARER], "=": [0, 0, NEARER], "-": [0, 0, 1 / NEARER],
    };
    const {layout, home} = figureOf(event.currentTarget);
    const camera = layout.scene.camera;
    if (event.key !== "0" && !(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) {
      return;
    }
    event.preventDefault();
    leading = null;
    const next = event.key === "0" ? home : {...camera, eye: turned(camera, ...moves[event.key])};
    scenesOf(groupOf(event.currentTarget)).forEach(scene => look(scene, next));
  }

  const webgl = document.createElement("canvas").getContext("webgl");
  if (!webgl) {
    return;
  }
  webgl.getExtension("WEBGL_lose_context")?.loseContext();
  document.documentElement.classList.add("turning");

  const observer = new IntersectionObserver(
    entries => entries.forEach(entry => (entry.isIntersecting ? show : hide)(entry.target)), {rootMargin: "25%"}
  );
  for (const scene of document.querySelectorAll(".scene")) {
    scene.addEventListener("pointerdown", () => { leading = scene; }, true);
    scene.addEventListener("keydown", pressed);
    observer.observe(scene);
  }
  for (const form of document.querySelectorAll(".controls")) {
    form.addEventListener("change", event => {
      const group = groupOf(form);
      group.dataset[event.target.name] = event.target.value;
      scenesOf(group).filter(scene => shown.has(scene)).forEach(show);
    });
  }
  dark.addEventListener("change", () => shown.forEach(show));
})();
