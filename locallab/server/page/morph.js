// Views that are drawn again as a whole, while most of what they show stays as it is.

/**
 * Make `old` like `wanted` with as few changes as can be, so that what is focused, scrolled or selected stays. Listeners are no
 * part of the comparison: those of elements that stay must not depend on what is drawn.
 */
export function morph(old, wanted) {
  if (old.isEqualNode(wanted)) return;
  if (!old.cloneNode().isEqualNode(wanted.cloneNode())) {
    old.replaceWith(wanted);
    return;
  }
  const children = [...wanted.childNodes];
  while (old.childNodes.length > children.length) old.lastChild.remove();
  children.forEach((child, at) => (old.childNodes[at] ? morph(old.childNodes[at], child) : old.append(child)));
}
