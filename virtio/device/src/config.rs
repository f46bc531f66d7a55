/// Answers [`VirtioDevice::read_config`](crate::VirtioDevice::read_config) from a configuration laid out as bytes: what
/// lies beyond it reads as zero. virtio 1.3 §2.5
pub fn read_config_bytes(config: &[u8], offset: u32, dst: &mut [u8]) {
    let from = usize::try_from(offset).unwrap_or(usize::MAX);
    let there = config.get(from..).unwrap_or_default();
    let mut there = there.iter();
    dst.fill_with(|| there.next().copied().unwrap_or(0));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_beyond_the_end_are_zero() {
        let mut dst = [0xff; 4];
        read_config_bytes(&[1, 2, 3], 1, &mut dst);
        assert_eq!(dst, [2, 3, 0, 0]);
        read_config_bytes(&[1, 2, 3], u32::MAX, &mut dst);
        assert_eq!(dst, [0; 4]);
    }
}
