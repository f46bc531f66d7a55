use super::cx::{Cx, Done};
use super::meta::What;
use crate::Extent;

/// Extents in one answer.
const MAX_EXTENTS: usize = 4096;

impl Cx {
    /// Where the contents of `[from, to)` come from, as far as one answer goes.
    pub(crate) async fn map(self, from: u64, to: u64) -> Done<Vec<Extent>> {
        let end = to.min(self.image.top().geometry.size);
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = from;
        while at < end {
            let extent = self.extent(at, end - at).await?;
            at += extent.len;
            let full = extents.len() >= MAX_EXTENTS;
            match extents.last_mut() {
                Some(last) if joins(last, &extent) => last.len += extent.len,
                _ if full => break,
                _ => extents.push(extent),
            }
        }
        Ok(extents)
    }

    async fn extent(&self, offset: u64, mut len: u64) -> Done<Extent> {
        let found = |len, depth: usize, data, allocated| Extent {
            offset,
            len,
            data,
            zero: !data,
            allocated,
            depth: depth as u32,
            compressed: false,
            at: None,
        };
        for (depth, layer) in self.image.layers.iter().enumerate() {
            let size = layer.geometry.size;
            if offset >= size {
                return Ok(found(len, depth.saturating_sub(1), false, false));
            }
            len = len.min(size - offset);
            let run = self
                .attempt(depth, |meta, geometry| meta.run(geometry, offset, len))
                .await?;
            len = run.len;
            match run.what {
                What::Hole => {}
                What::Zero => return Ok(found(len, depth, false, true)),
                What::Data { at, .. } => {
                    return Ok(Extent {
                        at: Some(at),
                        ..found(len, depth, true, true)
                    });
                }
                What::Packed { .. } => {
                    return Ok(Extent {
                        compressed: true,
                        ..found(len, depth, true, true)
                    });
                }
            }
        }
        let depth = self.image.layers.len();
        let Some(leaf) = self.image.leaf.filter(|leaf| offset < leaf.len) else {
            return Ok(found(len, 0, false, false));
        };
        let wanted = len.min(leaf.len - offset);
        let below = self.image.stores[usize::from(leaf.store)].map(offset, wanted);
        match below.map_err(Box::new)?.first() {
            Some(extent) => Ok(Extent {
                depth: depth as u32,
                len: extent.len.min(wanted),
                ..*extent
            }),
            None => Ok(found(wanted, depth, false, true)),
        }
    }
}

/// True if two neighbours can be told as one.
fn joins(a: &Extent, b: &Extent) -> bool {
    let same = (a.data, a.zero, a.allocated, a.depth, a.compressed)
        == (b.data, b.zero, b.allocated, b.depth, b.compressed);
    same && match (a.at, b.at) {
        (None, None) => true,
        (Some(first), Some(next)) => first + a.len == next,
        _ => false,
    }
}
