//! Another backing file for an image, in a way that a power cut leaves either the old one or the new one.

use super::bytes::{be32, be64, put};
use super::cx::{Cx, Done};
use super::header::{Header, extension};
use crate::StorageError;

/// What a disk writes wholly or not at all, in bytes.
const ATOMIC: usize = 512;

/// A header with another backing file. Its first sector alone decides which it is.
struct Renamed {
    header: Header,
    sector: Vec<u8>,
    /// The name, and where it must be durable before: in sectors of its own, unless the first has room for it.
    name: Option<(u64, Vec<u8>)>,
}

/// Plans it; the present name is at `used`. The names of features, which are for people to read, give way. `None` if the
/// other extensions or the name find no room.
fn plan(
    header: &Header,
    used: std::ops::Range<usize>,
    backing: Option<(&str, &str)>,
) -> Result<Option<Renamed>, String> {
    let mut header = header.clone();
    header.set_extension(extension::FEATURE_NAMES, None);
    header.set_extension(
        extension::BACKING_FORMAT,
        backing.map(|(_, format)| format.into()),
    );
    header.backing = None;
    let mut sector = header.encode()?;
    if sector.len() > ATOMIC {
        return Ok(None);
    }
    header.backing = backing.map(|(name, _)| name.to_owned());
    let mut whole = header.encode()?;
    if whole.len() <= ATOMIC {
        whole.resize(ATOMIC, 0);
        let (sector, name) = (whole, None);
        return Ok(Some(Renamed { header, sector, name }));
    }
    let mut name = backing.map_or(Vec::new(), |(name, _)| name.into());
    let len = name.len();
    name.resize(len.next_multiple_of(ATOMIC), 0);
    let apart = |at: usize| at + name.len() <= used.start || at >= used.end;
    let places = [ATOMIC, used.end.next_multiple_of(ATOMIC).max(ATOMIC)];
    let fits = |at: &usize| apart(*at) && at + name.len() <= 1 << header.cluster_bits;
    let Some(at) = places.into_iter().find(fits) else {
        return Ok(None);
    };
    put(&mut sector, 8, &(at as u64).to_be_bytes());
    put(&mut sector, 16, &(len as u32).to_be_bytes());
    sector.resize(ATOMIC, 0);
    let name = Some((at as u64, name));
    Ok(Some(Renamed { header, sector, name }))
}

impl Cx {
    /// Names another backing file in the header, or none. What the clusters hold does not change.
    pub(crate) async fn set_backing(self, backing: Option<(String, &'static str)>) -> Done<()> {
        self.prepare().await?;
        self.settle().await?;
        let top = self.image.top();
        let refused = |reason: String| {
            let path = top.path.clone();
            Box::new(StorageError::Refused { path, reason })
        };
        let block = self.image.stores[usize::from(top.file)].capabilities().block_size as usize;
        let present = self.io.read_block(top.file, 0, block).await?;
        let mut bytes = vec![0; block];
        present.buffers().copy_to(&mut bytes);
        let start = be64(&bytes, 8).unwrap_or(0) as usize;
        let used = start..start.saturating_add(be32(&bytes, 16).unwrap_or(0) as usize);
        let header = top.meta().header.clone();
        let backing = backing.as_ref().map(|(name, format)| (name.as_str(), *format));
        let planned = plan(&header, used, backing).map_err(refused)?;
        let Some(Renamed { header, sector, name }) = planned else {
            return Err(refused("its header has no room for that name".to_owned()));
        };
        if let Some((at, name)) = name {
            self.change_head(at as usize, &name).await?;
        }
        self.change_head(0, &sector).await?;
        top.meta().set_header(header);
        Ok(())
    }

    /// Writes sectors of the first cluster, durably. Where the file's blocks are larger, what else is in them stays.
    async fn change_head(&self, at: usize, bytes: &[u8]) -> Done<()> {
        let file = self.image.top().file;
        let block = self.image.stores[usize::from(file)].capabilities().block_size as usize;
        let (from, to) = (at / block * block, (at + bytes.len()).next_multiple_of(block));
        let present = self.io.read_block(file, from as u64, to - from).await?;
        let mut whole = vec![0; to - from];
        present.buffers().copy_to(&mut whole);
        put(&mut whole, at - from, bytes);
        self.put_bytes(from as u64, &whole).await?;
        self.flush_stores().await
    }
}
