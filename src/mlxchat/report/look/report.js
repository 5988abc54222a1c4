// The values on hover. Everything else in the page works without this script.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const [left, right, top, bottom, width, height] = [54, 448, 10, 214, 460, 250];
  const svgNames = "http://www.w3.org/2000/svg";
  const superscript = (number) => String(number).replace(/./g, (digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"["0123456789-".indexOf(digit)]);
  const smoothed = "_smoothed";
  const apart = 2;  // of the chart's width: a point further than that from the cursor says where it is

  const chosen = (name) => document.querySelector(`input[name=${name}]:checked`).id.split("-")[1];

  function xOf(run, series, place, axis) {
    const step = series.step[place];
    if (axis === "time") return series.seconds[place];
    if (axis === "step") return step;
    return step * run.tokens_per_step * (axis === "flops" ? run.flops_per_token : 1);
  }

  function nearest(run, series, x, axis) {
    let [low, high] = [0, series.step.length - 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (xOf(run, series, middle, axis) < x) low = middle + 1; else high = middle;
    }
    const before = Math.max(0, low - 1);
    const distance = (place) => Math.abs(xOf(run, series, place, axis) - x);
    return distance(before) < distance(low) ? before : low;
  }

  const share = (value, [first, last], log) =>
    log ? Math.log(value / first) / Math.log(last / first) : (value - first) / (last - first);

  function figure(value) {
    if (value === null) return "not finite";
    const size = Math.abs(value);
    if (size >= 1e12 || (size > 0 && size < 1e-4)) {
      const [factor, power] = value.toExponential(2).split("e");
      return `${Number(factor)}·10${superscript(Number(power))}`;
    }
    return value.toLocaleString("en", { maximumSignificantDigits: size < 1e4 ? 5 : 7 });
  }

  function bytes(size) {
    for (const [unit, factor] of [["TB", 1e12], ["GB", 1e9], ["MB", 1e6], ["kB", 1e3]])
      if (size >= 0.99995 * factor) return `${(size / factor).toFixed(1)} ${unit}`;
    return `${size.toFixed(0)} B`;
  }

  function quantity(value, unit) {
    if (value === null) return "not finite";
    if (unit === "share") return `${(100 * value).toFixed(1)}%`;
    if (unit === "bytes") return bytes(value);
    return figure(value);
  }

  function duration(seconds) {
    if (seconds >= 0.05 && seconds < 0.95) return `${seconds.toFixed(1)}s`;
    const whole = Math.round(seconds);
    const two = (number) => String(number).padStart(2, "0");
    if (whole < 60) return `${whole}s`;
    if (whole < 3600) return `${Math.floor(whole / 60)}m ${two(whole % 60)}s`;
    if (whole < 86400) return `${Math.floor(whole / 3600)}h ${two(Math.floor(whole % 3600 / 60))}m`;
    return `${Math.floor(whole / 86400)}d ${two(Math.floor(whole % 86400 / 3600))}h`;
  }

  function place(value, axis) {
    if (axis === "time") return duration(value);
    return axis === "step" ? `step ${figure(value)}` : `${figure(value)} ${axis === "flops" ? "FLOPs" : axis}`;
  }

  for (const chart of document.querySelectorAll("svg[data-chart]")) {
    const scales = JSON.parse(chart.dataset.scales);
    const names = chart.dataset.series.split(" ");
    const lines = data.runs.flatMap((run, number) => names.filter((name) => run.series[name])
      .map((name) => ({ run, name, colour: `c${number % 6}`, series: run.series[name] })));
    let shown = [];

    const clear = () => { for (const element of shown) element.remove(); shown = []; };

    function mark(name, attributes) {
      const element = document.createElementNS(svgNames, name);
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      chart.append(element);
      shown.push(element);
    }

    function show(event) {
      clear();
      const [axis, scale] = [chosen("x"), chosen("scale")];
      const domain = scales.x[`${axis}-${scale}`];
      const box = chart.getBoundingClientRect();
      const across = (event.clientX - box.left) * width / box.width;
      if (!domain || across < left - 6 || across > right + 6) return;
      const portion = Math.min(1, Math.max(0, (across - left) / (right - left)));
      const x = scale === "log" ? domain[0] * (domain[1] / domain[0]) ** portion
        : domain[0] + portion * (domain[1] - domain[0]);
      const found = lines.map((line) => {
        const at = nearest(line.run, line.series, x, axis);
        return { ...line, at, x: xOf(line.run, line.series, at, axis), value: line.series.value[at] };
      });
      if (!found.length) return;
      const closest = found.reduce((one, other) => Math.abs(other.x - x) < Math.abs(one.x - x) ? other : one);
      const down = (value) => bottom - share(value, scales.y, scales.y[2]) * (bottom - top);
      const along = (value) => left + share(value, domain, scale === "log") * (right - left);
      mark("path", { class: "cursor", d: `M${along(closest.x)} ${top}V${bottom}` });
      const values = document.createElement("div");
      values.className = "values";
      const head = document.createElement("b");
      head.textContent = place(closest.x, axis);
      values.append(head);
      for (const one of found) {
        if (one.value !== null && Number.isFinite(along(one.x)))
          mark("circle", { class: `point ${one.colour}`, cx: along(one.x), cy: down(one.value), r: 4 });
        const line = document.createElement("div");
        const swatch = document.createElement("i");
        swatch.className = one.colour;
        const kind = names.length < 2 ? "" : one.name.endsWith(smoothed) ? "average" : "this step";
        const words = [data.runs.length > 1 ? one.run.name : "", kind].filter(Boolean);
        let text = quantity(one.value, chart.dataset.unit);
        if (one.series.low) text += ` (${quantity(one.series.low[one.at], chart.dataset.unit)} to ` +
          `${quantity(one.series.high[one.at], chart.dataset.unit)})`;
        if (!(Math.abs(along(one.x) - along(closest.x)) <= apart)) text += `, ${place(one.x, axis)}`;
        line.append(swatch, `${words.join(", ")} ${text}`.trim());
        values.append(line);
      }
      const figureElement = chart.parentElement;
      figureElement.append(values);
      shown.push(values);
      const middle = along(closest.x) * box.width / width;
      const room = figureElement.clientWidth;
      const wide = values.offsetWidth;
      const beside = middle + 14 + wide > room ? middle - 14 - wide : middle + 14;
      values.style.left = `${Math.max(0, Math.min(room - wide, beside))}px`;
      const above = box.top - figureElement.getBoundingClientRect().top;
      values.style.top = `${above + (top + 4) * box.height / height}px`;
    }

    chart.addEventListener("pointermove", show);
    chart.addEventListener("pointerdown", show);
    chart.addEventListener("pointerleave", clear);
  }

  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });
})();
