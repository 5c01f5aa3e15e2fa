/** A notebook's document beside its kernel: what a save takes, and what going back puts in its place. */

import type { ICodeCellModel } from '@jupyterlab/cells';
import type { INotebookContent } from '@jupyterlab/nbformat';
import type { NotebookPanel } from '@jupyterlab/notebook';

/** In a cell's metadata: the snapshot that time was turned back to before this cell, which ran later. */
export const TURNED_BACK = 'ijfs_turned_back';

/** The document as the browser has it, unsaved cells included. */
export function documentOf(panel: NotebookPanel): INotebookContent {
  return panel.content.model?.toJSON() as INotebookContent;
}

/** Put a snapshot's document in the place of the present one, and on the disk. The place in it is kept. */
export async function bringBack(panel: NotebookPanel, document: INotebookContent): Promise<void> {
  const { content, context } = panel;
  const active = content.activeCellIndex;
  content.model?.fromJSON(document);
  content.activeCellIndex = Math.min(active, content.widgets.length - 1);
  await context.save();
}

/** Keep the newer text, and mark the first cell that ran after `count` as the one before which time was turned back. */
export function markTurn(panel: NotebookPanel, snapshot: string, count: number | null): void {
  const cells = Array.from(panel.content.model?.cells ?? []);
  cells.forEach(cell => cell.deleteMetadata(TURNED_BACK));
  const later = cells.find(cell => cell.type === 'code' && ((cell as ICodeCellModel).executionCount ?? 0) > (count ?? 0));
  later?.setMetadata(TURNED_BACK, snapshot);
}

/** The prompt of the last cell that ran in a document; null where none did. */
export function lastCount(document: INotebookContent | null): number | null {
  const counts = (document?.cells ?? []).map(cell => Number(cell.execution_count ?? 0));
  return counts.length > 0 ? Math.max(...counts) : null;
}

/** Let go of the kernel's channels and take them anew: widgets ask the kernel for their state then. */
export async function reconnect(panel: NotebookPanel): Promise<void> {
  await panel.sessionContext.session?.kernel?.reconnect();
}
