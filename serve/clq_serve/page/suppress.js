// Thresholds and suppression among detections that are here already, with the semantics of the
// service (clq_serve/nms.py): the sliders need no new request.

/**
 * What the service would give for these options.
 *
 * detections  by descending score, of equal scores the lower candidate first, not suppressed:
 *             the answer to iou=1
 * score       detections with a score above it are kept
 * iou         a box whose IoU with a kept box of its class is above it is dropped
 */
export function suppress(detections, score, iou) {
  const keptOfClass = new Map();
  return detections.filter((found) => {
    if (found.score <= score) return false;
    if (!keptOfClass.has(found.class_id)) keptOfClass.set(found.class_id, []);
    const kept = keptOfClass.get(found.class_id);
    if (kept.some((stronger) => overlap(stronger.box, found.box) > iou)) return false;
    kept.push(found);
    return true;
  });
}

/** Intersection over union of two boxes x1, y1, x2, y2; 0 if they do not overlap. */
function overlap([ax1, ay1, ax2, ay2], [bx1, by1, bx2, by2]) {
  const width = Math.min(ax2, bx2) - Math.max(ax1, bx1);
  const height = Math.min(ay2, by2) - Math.max(ay1, by1);
  if (width <= 0 || height <= 0) return 0;
  const both = width * height;
  return both / ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - both);
}
