// A small curve of the last minute.

const SECONDS = 60;
const GAP = 4;
const WIDTH = 120;
const HEIGHT = 28;
const SVG = "http://www.w3.org/2000/svg";

function shape(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/**
 * Return the path of points [seconds, value], the newest at the right edge, and the largest value. Points older than a minute
 * are left out; where more than GAP seconds lie between two the curve is interrupted.
 */
export function path(points, now) {
  const seen = points.filter(([at]) => now - at <= SECONDS);
  const most = Math.max(0, ...seen.map(([, value]) => value));
  let before = -Infinity;
  const parts = seen.map(([at, value]) => {
    const x = WIDTH * (1 - (now - at) / SECONDS);
    const y = HEIGHT - 1 - (most ? (value / most) * (HEIGHT - 2) : 0);
    const letter = at - before > GAP ? "M" : "L";
    before = at;
    return `${letter}${x.toFixed(1)} ${y.toFixed(1)}`;
  });
  return { d: parts.join(""), most };
}

/** Return a curve: `element` is decoration, what it shows is to be said in words; `add(value)` returns the largest value. */
export function sparkline() {
  const line = shape("path", { fill: "none", "vector-effect": "non-scaling-stroke" });
  const element = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  element.append(line);
  let points = [];
  return {
    element,
    add(value) {
      const now = performance.now() / 1000;
      points = [...points.filter(([at]) => now - at <= SECONDS), [now, value]];
      const { d, most } = path(points, now);
      line.setAttribute("d", d);
      return most;
    },
  };
}
