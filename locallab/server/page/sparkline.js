// A small curve of the last minute.

const SECONDS = 60;
const GAP = 4;
const WIDTH = 120;
const HEIGHT = 28;

/**
 * Return the path of points [seconds, value], the last one at the right edge, and the largest value. Points older than a
 * minute are left out; where more than GAP seconds lie between two the curve is interrupted.
 */
export function path(points) {
  const now = points.at(-1)?.[0];
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

function shape(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** Return the curve of a path, as decoration: what it shows is to be said in words. */
export function sparkline(d) {
  const element = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  element.append(shape("path", { d, fill: "none", "vector-effect": "non-scaling-stroke" }));
  return element;
}
