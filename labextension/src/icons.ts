/** The panel's icons: strokes in the colour of the text beside them. */

import { LabIcon } from '@jupyterlab/ui-components';

function icon(name: string, strokes: string): LabIcon {
  const style = 'fill="none" stroke="currentColor" stroke-width="1.6" stroke-linecap="round" stroke-linejoin="round"';
  const svgstr = `<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 16 16"><g ${style}>${strokes}</g></svg>`;
  return new LabIcon({ name: `ijfs:${name}`, svgstr });
}

/** A line that branches: the panel's own mark. */
export const treeIcon = icon(
  'tree',
  '<circle cx="5" cy="3" r="1.8"/><circle cx="5" cy="13" r="1.8"/><circle cx="12" cy="9" r="1.8"/><path d="M5 5v6M5 6c0 2.5 2 3 5 3"/>'
);
export const saveIcon = icon('save', '<circle cx="8" cy="8" r="3"/><path d="M8 1.5V5M8 11v3.5"/>');
export const undoIcon = icon('undo', '<path d="M3 6h6.5a3.5 3.5 0 0 1 0 7H6M3 6l3-3M3 6l3 3"/>');
export const backIcon = icon('back', '<path d="M2.6 5.5A6 6 0 1 1 2 8M2.6 2v3.5h3.5M8 5v3.2l2.2 1.3"/>');
export const forkIcon = icon(
  'fork',
  '<circle cx="3.5" cy="8" r="1.6"/><circle cx="12.5" cy="3.5" r="1.6"/><circle cx="12.5" cy="12.5" r="1.6"/><path d="M5 8h1.5c2 0 2-4.5 4.4-4.5M6.5 8c2 0 2 4.5 4.4 4.5"/>'
);
export const compareIcon = icon('compare', '<path d="M5 3v10M2.5 10.5 5 13l2.5-2.5M11 13V3M8.5 5.5 11 3l2.5 2.5"/>');
export const renameIcon = icon('rename', '<path d="M2.5 13.5 3 11l7.5-7.5 2 2L5 13zM9 5l2 2"/>');
export const tagIcon = icon('tag', '<path d="M2.5 2.5h5l6 6-5 5-6-6z"/><circle cx="5.3" cy="5.3" r=".6"/>');
export const deleteIcon = icon('delete', '<path d="M3 4.5h10M6 4.5V3h4v1.5M4.5 4.5l.5 9h6l.5-9"/>');
export const adoptIcon = icon('adopt', '<path d="M8 2v7.5M5 6.8 8 9.8l3-3M2.5 11v2.5h11V11"/>');
export const hereIcon = icon('here', '<circle cx="8" cy="8" r="4.5"/><path d="M8 1v3M8 12v3M1 8h3M12 8h3"/>');
