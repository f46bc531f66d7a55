use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::{Arc, OnceLock};

use treaty_bus::{Access, BusDevice};
use treaty_chardev::Chardev;
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};

/// Called when there is room for input again.
type OnRoom = Arc<OnceLock<Box<dyn Fn() + Send + Sync>>>;

/// A 16550A UART. Output goes straight to its endpoint; what that cannot take is dropped and counted there, because a
/// vCPU must not wait for a terminal.
pub struct Uart {
    serial: Serial<Pulse, Room, Output>,
    on_room: OnRoom,
}

impl Uart {
    /// `interrupt` sends one edge; it must not block.
    pub fn new(output: Chardev, interrupt: Box<dyn Fn() + Send>) -> Self {
        let on_room = OnRoom::default();
        let serial = Serial::with_events(Pulse(interrupt), Room(on_room.clone()), Output(output));
        Self { serial, on_room }
    }

    /// `on_room` is called, with the UART locked, when input that did not fit can be [received](Self::receive). Once.
    pub fn notify_room(&mut self, on_room: Box<dyn Fn() + Send + Sync>) {
        let _set_once = self.on_room.set(on_room);
    }

    /// Takes as many bytes of input as there is room for, and returns how many.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let count = self.serial.fifo_capacity().min(bytes.len());
        let Some(part) = bytes.get(..count).filter(|part| !part.is_empty()) else {
            return 0;
        };
        // In loopback mode the line is disconnected: bytes that arrive are lost, as on the wire.
        self.serial.enqueue_raw_bytes(part).unwrap_or(count)
    }
}

impl BusDevice for Uart {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Access {
        let (Ok(offset), [byte]) = (u8::try_from(offset), data) else {
            return Access::Fault;
        };
        *byte = self.serial.read(offset);
        Access::Done
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Access {
        let (Ok(offset), [byte]) = (u8::try_from(offset), data) else {
            return Access::Fault;
        };
        // Fails only in loopback mode with a full buffer: the byte is lost, as on the wire.
        let _ = self.serial.write(offset, *byte);
        Access::Done
    }
}

struct Pulse(Box<dyn Fn() + Send>);

impl Trigger for Pulse {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        (self.0)();
        Ok(())
    }
}

struct Room(OnRoom);

impl SerialEvents for Room {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        if let Some(on_room) = self.0.get() {
            on_room();
        }
    }
}

struct Output(Chardev);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_lossy(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const DATA: u64 = 0;
    const INTERRUPT_ENABLE: u64 = 1;
    const LINE_STATUS: u64 = 5;

    fn add_one(count: &AtomicUsize) {
        count.fetch_add(1, Ordering::Relaxed);
    }

    fn byte(uart: &mut Uart, register: u64) -> u8 {
        let mut data = [0];
        uart.read(register, &mut data);
        data[0]
    }

    #[test]
    fn bytes_go_out_and_come_in() {
        let (chardev, mut far) = Chardev::pair().unwrap();
        let edges = Arc::new(AtomicUsize::new(0));
        let counted = edges.clone();
        let mut uart = Uart::new(chardev, Box::new(move || add_one(&counted)));
        let rooms = Arc::new(AtomicUsize::new(0));
        let counted = rooms.clone();
        uart.notify_room(Box::new(move || add_one(&counted)));
        uart.write(DATA, b"x");
        let mut out = [0];
        far.read_exact(&mut out).unwrap();
        assert_eq!(&out, b"x");
        uart.write(INTERRUPT_ENABLE, &[1]);
        let many = [7; 100];
        let taken = uart.receive(&many);
        assert!(taken > 0 && taken < many.len());
        assert_eq!(uart.receive(&many), 0);
        assert!(edges.load(Ordering::Relaxed) > 0);
        for _ in 0..taken {
            assert_eq!(byte(&mut uart, LINE_STATUS) & 1, 1);
            assert_eq!(byte(&mut uart, DATA), 7);
        }
        assert_eq!(byte(&mut uart, LINE_STATUS) & 1, 0);
        assert!(rooms.load(Ordering::Relaxed) > 0);
        assert!(matches!(uart.read(DATA, &mut [0; 2]), Access::Fault));
    }
}
