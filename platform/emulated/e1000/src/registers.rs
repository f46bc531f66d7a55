//! Register offsets in bytes and their bits, by the manual's names. 8254x 4.0 §13

pub(crate) const CTRL: u32 = 0x0000;
pub(crate) const STATUS: u32 = 0x0008;
pub(crate) const EECD: u32 = 0x0010;
pub(crate) const EERD: u32 = 0x0014;
pub(crate) const CTRL_EXT: u32 = 0x0018;
pub(crate) const MDIC: u32 = 0x0020;
pub(crate) const FCAL: u32 = 0x0028;
pub(crate) const VET: u32 = 0x0038;
pub(crate) const ICR: u32 = 0x00c0;
pub(crate) const ITR: u32 = 0x00c4;
pub(crate) const ICS: u32 = 0x00c8;
pub(crate) const IMS: u32 = 0x00d0;
pub(crate) const IMC: u32 = 0x00d8;
pub(crate) const RCTL: u32 = 0x0100;
pub(crate) const FCTTV: u32 = 0x0170;
pub(crate) const TXCW: u32 = 0x0178;
pub(crate) const TCTL: u32 = 0x0400;
pub(crate) const TIPG: u32 = 0x0410;
pub(crate) const AIT: u32 = 0x0458;
pub(crate) const LEDCTL: u32 = 0x0e00;
pub(crate) const PBA: u32 = 0x1000;
pub(crate) const FCRTL: u32 = 0x2160;
pub(crate) const RDFH: u32 = 0x2410;
pub(crate) const RDBAL: u32 = 0x2800;
pub(crate) const RDLEN: u32 = 0x2808;
pub(crate) const RDH: u32 = 0x2810;
pub(crate) const RDT: u32 = 0x2818;
pub(crate) const RDTR: u32 = 0x2820;
pub(crate) const RXDCTL: u32 = 0x2828;
pub(crate) const RADV: u32 = 0x282c;
pub(crate) const RSRPD: u32 = 0x2c00;
pub(crate) const TXDMAC: u32 = 0x3000;
pub(crate) const TDFH: u32 = 0x3410;
pub(crate) const TDBAL: u32 = 0x3800;
pub(crate) const TDLEN: u32 = 0x3808;
pub(crate) const TDH: u32 = 0x3810;
pub(crate) const TDT: u32 = 0x3818;
pub(crate) const TIDV: u32 = 0x3820;
pub(crate) const TXDCTL: u32 = 0x3828;
pub(crate) const TADV: u32 = 0x382c;
pub(crate) const TSPMT: u32 = 0x3830;
/// Statistics begin here. 8254x 4.0 §13.7
pub(crate) const CRCERRS: u32 = 0x4000;
pub(crate) const RXCSUM: u32 = 0x5000;
/// Multicast table array: 128 registers.
pub(crate) const MTA: u32 = 0x5200;
/// Receive addresses: 16 pairs of registers.
pub(crate) const RAL: u32 = 0x5400;
/// VLAN filter table array: 128 registers.
pub(crate) const VFTA: u32 = 0x5600;
pub(crate) const WUC: u32 = 0x5800;
pub(crate) const MANC: u32 = 0x5820;
/// One past the last register that is kept.
pub(crate) const END: u32 = 0x5a00;

/// 8254x 4.0 §13.4.1
pub(crate) mod ctrl {
    pub(crate) const FD: u32 = 1;
    pub(crate) const SLU: u32 = 1 << 6;
    pub(crate) const SPEED_1000: u32 = 2 << 8;
    pub(crate) const RST: u32 = 1 << 26;
    pub(crate) const VME: u32 = 1 << 30;
    pub(crate) const PHY_RST: u32 = 1 << 31;
}

/// 8254x 4.0 §13.4.2
pub(crate) mod status {
    pub(crate) const FD: u32 = 1;
    pub(crate) const LU: u32 = 1 << 1;
    pub(crate) const TXOFF: u32 = 1 << 4;
    pub(crate) const SPEED_1000: u32 = 2 << 6;
    pub(crate) const ASDV_1000: u32 = 2 << 8;
}

/// Interrupt causes. 8254x 4.0 §13.4.17
pub(crate) mod cause {
    pub(crate) const TXDW: u32 = 1;
    pub(crate) const TXQE: u32 = 1 << 1;
    pub(crate) const LSC: u32 = 1 << 2;
    pub(crate) const RXDMT0: u32 = 1 << 4;
    pub(crate) const RXO: u32 = 1 << 6;
    pub(crate) const RXT0: u32 = 1 << 7;
    pub(crate) const MDAC: u32 = 1 << 9;
}

/// 8254x 4.0 §13.4.22
pub(crate) mod rctl {
    pub(crate) const EN: u32 = 1 << 1;
    pub(crate) const UPE: u32 = 1 << 3;
    pub(crate) const MPE: u32 = 1 << 4;
    pub(crate) const LPE: u32 = 1 << 5;
    pub(crate) const LBM: u32 = 3 << 6;
    pub(crate) const RDMTS_SHIFT: u32 = 8;
    pub(crate) const MO_SHIFT: u32 = 12;
    pub(crate) const BAM: u32 = 1 << 15;
    pub(crate) const BSIZE_SHIFT: u32 = 16;
    pub(crate) const VFE: u32 = 1 << 18;
    pub(crate) const BSEX: u32 = 1 << 25;
    pub(crate) const SECRC: u32 = 1 << 26;
}

/// 8254x 4.0 §13.4.33
pub(crate) mod tctl {
    pub(crate) const EN: u32 = 1 << 1;
    pub(crate) const PSP: u32 = 1 << 3;
}

/// 8254x 4.0 §13.5.9 (receive checksum control)
pub(crate) mod rxcsum {
    pub(crate) const IPOFL: u32 = 1 << 8;
    pub(crate) const TUOFL: u32 = 1 << 9;
}

/// A receive address is valid.
pub(crate) const RAH_AV: u32 = 1 << 31;

/// Commands of a transmit descriptor, in bits 24 to 31 of its third word. 8254x 4.0 §3.3
pub(crate) mod command {
    pub(crate) const EOP: u32 = 1 << 24;
    pub(crate) const IC: u32 = 1 << 26;
    /// In data and context descriptors: segmentation.
    pub(crate) const TSE: u32 = 1 << 26;
    pub(crate) const RS: u32 = 1 << 27;
    pub(crate) const RPS: u32 = 1 << 28;
    pub(crate) const DEXT: u32 = 1 << 29;
    pub(crate) const VLE: u32 = 1 << 30;
    pub(crate) const IDE: u32 = 1 << 31;
    /// In context descriptors: TCP, not UDP.
    pub(crate) const TCP: u32 = 1 << 24;
    /// In context descriptors: IPv4, not IPv6.
    pub(crate) const IP: u32 = 1 << 25;
    /// Data descriptor, not context, in bits 20 to 23.
    pub(crate) const DTYP_DATA: u32 = 1 << 20;
    pub(crate) const DTYP: u32 = 0xf << 20;
}

/// Status and errors of a receive descriptor: the low and the high byte of the last word's low half. 8254x 4.0 §3.2.3
pub(crate) mod received {
    pub(crate) const DD: u8 = 1;
    pub(crate) const EOP: u8 = 1 << 1;
    pub(crate) const IXSM: u8 = 1 << 2;
    pub(crate) const VP: u8 = 1 << 3;
    pub(crate) const TCPCS: u8 = 1 << 5;
    pub(crate) const IPCS: u8 = 1 << 6;
    pub(crate) const ERROR_TCPE: u8 = 1 << 5;
    pub(crate) const ERROR_IPE: u8 = 1 << 6;
}
