//! Command lines that people have, the machines that they become, and what is said of the rest.

use treaty_qemu_args::{Line, Severity, run_flags, translate};

/// A command line, the flags of `treaty run` that it becomes, and the beginnings of what keeps it from being the same.
struct Row(&'static str, &'static str, &'static [&'static str]);

const ROWS: [Row; 23] = [
    // The example of the issue.
    Row(
        "-enable-kvm -m 4096 -smp 4 -drive file=vm.qcow2,if=virtio,format=qcow2,cache=none -netdev tap,id=n0,script=no,downscript=no,ifname=t0 \
         -device virtio-net-pci,netdev=n0,mq=on,vectors=10 -kernel k -append root=/dev/vda1 -nographic",
        "run --kernel k --cmdline root=/dev/vda1 --cpus 4 --memory 4G --disk path=vm.qcow2,format=qcow2,backing,cache=none --net tap=t0",
        &[],
    ),
    Row(
        "qemu-system-x86_64 -M q35,accel=kvm -cpu host -m size=1G -smp cpus=2,sockets=1,cores=2 -kernel k -initrd i -append x -display none -serial file:log",
        "run --kernel k --initrd i --cmdline x --cpus 2 --memory 1G --serial file=log",
        &[],
    ),
    // Nothing guesses a format.
    Row(
        "-accel kvm -kernel k -drive file=a.img,if=virtio -nographic",
        "run --kernel k --cmdline  --cpus 1 --memory 128M",
        &["-drive file=a.img,if=virtio | format | not given, and never guessed"],
    ),
    Row(
        "-accel kvm -kernel k -hda a.img -nographic",
        "run --kernel k --cmdline  --cpus 1 --memory 128M",
        &["-hda a.img | format | not given"],
    ),
    // A CD-ROM's image has one format.
    Row(
        "-accel kvm -kernel k -drive file=a.img,format=raw,index=0 -cdrom c.iso -nographic",
        "run --kernel k --cmdline  --cpus 1 --memory 128M --disk path=a.img,format=raw,if=ide --disk path=c.iso,format=raw,if=ide,media=cdrom,readonly",
        &[],
    ),
    Row(
        "-accel kvm -kernel k -nic user,model=e1000,mac=52:54:00:00:00:01 -nographic",
        "run --kernel k --cmdline  --cpus 1 --memory 128M --net user,mac=52:54:00:00:00:01,model=e1000",
        &[],
    ),
    Row(
        "-accel kvm -kernel k -net nic,model=virtio -net user -nographic",
        "run --kernel k --cmdline  --cpus 1 --memory 128M --net user",
        &[],
    ),
    Row(
        "-accel kvm -kernel k -netdev user,id=n,hostfwd=tcp::2222-:22 -device virtio-net-pci,netdev=n -nographic",
        "run --kernel k --cmdline  --cpus 1 --memory 128M --net user",
        &["-netdev user,id=n,hostfwd=tcp::2222-:22 | hostfwd=tcp::2222-:22 | no ports are forwarded"],
    ),
    Row(
        "-accel kvm -kernel k -netdev tap,id=n,fd=33,vhost=on -device virtio-net-pci,netdev=n -nographic",
        "run --kernel k --cmdline  --cpus 1 --memory 128M",
        &["-netdev tap,id=n,fd=33,vhost=on | fd=33 | Treaty opens a tap by its name"],
    ),
    // Two queue pairs, packed.
    Row(
        "-accel kvm -kernel k -netdev tap,id=n,ifname=t,queues=2,script=no -device virtio-net-pci,netdev=n,mq=on,packed=on,host_mtu=9000 -nographic",
        "run --kernel k --cmdline  --cpus 1 --memory 128M --net tap=t,mtu=9000,queues=2,ring=packed",
        &[],
    ),
    Row(
        "-accel kvm -kernel k -drive file=d,format=raw,if=none,id=d,readonly=on,throttling.iops-total=100,throttling.bps-read=1M \
         -device virtio-blk-pci,drive=d,serial=S1,num-queues=4,logical_block_size=4096,physical_block_size=4096,bootindex=1 -nographic",
        "run --kernel k --cmdline  --cpus 1 --memory 128M --disk path=d,format=raw,block-size=4096,bps_rd=1048576,iops=100,queues=4,readonly,serial=S1",
        &[],
    ),
    // Without a kernel, the disk's own boot loader.
    Row(
        "-enable-kvm -m 1G -hda vm.img -cdrom c.iso -boot order=dc,menu=on -nographic -drive if=pflash,format=raw,file=OVMF.fd",
        "run --machine pc --boot cdrom,disk --cpus 1 --memory 1G --disk path=c.iso,format=raw,if=ide,media=cdrom,readonly",
        &[
            "-hda vm.img | format | not given",
            "-drive if=pflash,format=raw,file=OVMF.fd |  | UEFI is not run",
        ],
    ),
    // libvirt's way to say a disk.
    Row(
        "-accel kvm -kernel k -blockdev {\"driver\":\"file\",\"filename\":\"/d\",\"node-name\":\"f\",\"auto-read-only\":true,\"discard\":\"unmap\"} \
         -blockdev {\"node-name\":\"n\",\"read-only\":false,\"driver\":\"qcow2\",\"file\":\"f\",\"cache\":{\"direct\":true,\"no-flush\":false}} \
         -device {\"driver\":\"virtio-blk-pci\",\"bus\":\"pci.4\",\"addr\":\"0x0\",\"drive\":\"n\",\"id\":\"v0\",\"bootindex\":1} \
         -object {\"qom-type\":\"memory-backend-memfd\",\"id\":\"m\",\"size\":1073741824,\"share\":true} -machine pc-q35-10.0,memory-backend=m -display none",
        "run --kernel k --cmdline  --cpus 1 --memory 1G --serial none --disk path=/d,format=qcow2,backing,cache=none",
        &[],
    ),
    Row(
        "-accel kvm -kernel k -blockdev nbd,node-name=n,server.type=inet,server.host=h,server.port=10809,export=e -device virtio-blk,drive=n -nographic",
        "run --kernel k --cmdline  --cpus 1 --memory 128M --disk path=nbd://h:10809/e,format=raw",
        &[],
    ),
    Row(
        "-accel kvm -kernel k -drive file=x.vmdk,format=vmdk,if=virtio -nographic",
        "run --kernel k --cmdline  --cpus 1 --memory 128M",
        &["-drive file=x.vmdk,format=vmdk,if=virtio | format | format vmdk: Treaty has raw and qcow2"],
    ),
    Row(
        "-accel kvm -kernel k -device virtio-serial-pci -chardev socket,id=c,path=/s,server=on,wait=off -device virtserialport,chardev=c,name=org.x -nographic",
        "run --kernel k --cmdline  --cpus 1 --memory 128M --console socket=/s,name=org.x",
        &[],
    ),
    Row(
        "-accel kvm -kernel k -object rng-random,filename=/dev/urandom,id=r -device virtio-rng-pci,rng=r -serial unix:/s,server,nowait",
        "run --kernel k --cmdline  --cpus 1 --memory 128M --serial socket=/s --rng",
        &[],
    ),
    Row(
        "-accel kvm -kernel k -chardev socket,id=c,path=/v -device vhost-user-blk-pci,chardev=c,num-queues=2 -nographic",
        "run --kernel k --cmdline  --cpus 1 --memory 128M --vhost-user /v,type=blk,queues=2",
        &[],
    ),
    // Refused devices take their drives with them: each is named once.
    Row(
        "-accel kvm -kernel k -drive file=d,format=raw,if=none,id=d -device virtio-scsi-pci -device scsi-hd,drive=d -device vfio-pci,host=01:00.0 -nographic",
        "run --kernel k --cmdline  --cpus 1 --memory 128M",
        &[
            "-device virtio-scsi-pci |  | use virtio-blk",
            "-device scsi-hd,drive=d |  | use virtio-blk",
            "-device vfio-pci,host=01:00.0 |  | host devices are not passed through",
        ],
    ),
    Row(
        "-accel kvm -kernel k -cpu qemu64,+x2apic -m 511 -smp 64 -snapshot -nographic",
        "run --kernel k --cmdline  --cpus 1 --memory 128M",
        &[
            "-cpu qemu64,+x2apic | qemu64 | the guest sees the host's processor",
            "-cpu qemu64,+x2apic | +x2apic | the guest sees what the host's",
            "-m 511 |  | \"511\" is not an even number of MiB",
            "-smp 64 |  | 64 vCPUs; 1 to 32",
            "-snapshot |  | make a clone",
        ],
    ),
    Row(
        "-accel tcg -nographic",
        "run --machine pc --cpus 1 --memory 128M",
        &["-accel tcg |  | Treaty runs guests on KVM only"],
    ),
    Row(
        "-accel kvm -kernel k -no-reboot -m 2G,slots=4,maxmem=8G -boot c -vga none -usb -nographic",
        "run --kernel k --cmdline  --cpus 1 --memory 2G --no-reboot",
        &[
            "-m 2G,slots=4,maxmem=8G | slots=4 | memory cannot be added",
            "-m 2G,slots=4,maxmem=8G | maxmem=8G | memory cannot be added",
            "-usb |  | Treaty has no such thing",
        ],
    ),
    Row(
        "-accel kvm -kernel k -drive file=d,format=raw,if=virtio,werror=stop,rerror=stop,aio=native,copy-on-read=on -serial none -serial stdio",
        "run --kernel k --cmdline  --cpus 1 --memory 128M --serial none --disk path=d,format=raw,on-error=stop",
        &[
            "-drive file=d,format=raw,if=virtio,werror=stop,rerror=stop,aio=native,copy-on-read=on | copy-on-read=on | `treaty img rebase`",
            "-serial stdio |  | Treaty's machine has one serial port",
        ],
    ),
];

#[test]
fn lines_become_machines() {
    let mut wrong = Vec::new();
    for Row(words, flags, refused) in ROWS {
        let made = translate(&Line::parse(words.split_whitespace()).unwrap());
        let found = run_flags(&made.plan).unwrap().join(" ");
        if found != flags {
            wrong.push(format!("{words}\n  becomes {found}\n  and not {flags}"));
        }
        let said: Vec<String> = made
            .refused()
            .map(|remark| {
                let part = remark.part.as_deref().unwrap_or_default();
                format!("{} | {part} | {}", remark.option, remark.advice)
            })
            .collect();
        let as_wanted = said.len() == refused.len()
            && said
                .iter()
                .zip(refused)
                .all(|(said, wanted)| said.starts_with(wanted));
        if !as_wanted {
            wrong.push(format!("{words}\n  refuses {said:#?}\n  and not {refused:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_machine_without_refusals_passes_the_plans_own_check() {
    for Row(words, ..) in ROWS {
        let made = translate(&Line::parse(words.split_whitespace()).unwrap());
        if made.refused().next().is_none() {
            assert_eq!(made.plan.check(), Ok(()), "{words}");
        }
    }
}

/// Every word of a line is either in the plan or in a remark: what is made up is always named.
#[test]
fn every_unknown_key_is_named() {
    let base = "-accel kvm -kernel k -nographic";
    for (option, key) in [
        ("-drive file=d,format=raw,if=virtio,KEY=1", "KEY=1"),
        (
            "-drive file=d,format=raw,if=none,id=d -device virtio-blk-pci,drive=d,KEY=1",
            "KEY=1",
        ),
        ("-netdev user,id=n,KEY=1 -device e1000,netdev=n", "KEY=1"),
        ("-netdev user,id=n -device e1000,netdev=n,KEY=1", "KEY=1"),
        ("-machine q35,KEY=1", "KEY=1"),
        ("-smp 2,KEY=1", "KEY=1"),
        ("-m 1G,KEY=1", "KEY=1"),
        ("-accel kvm,KEY=1", "KEY=1"),
        ("-device virtio-rng-pci,KEY=1", "KEY=1"),
        ("-chardev stdio,id=c,KEY=1 -serial chardev:c", "KEY=1"),
        ("-nic user,KEY=1", "KEY=1"),
    ] {
        let line = Line::parse(format!("{base} {option}").split_whitespace()).unwrap();
        let made = translate(&line);
        let named = made.refused().any(|remark| remark.part.as_deref() == Some(key));
        assert!(named, "{option}: {:?}", made.remarks);
    }
}

#[test]
fn what_does_not_matter_is_a_note() {
    let words = "-accel kvm -kernel k -name vm -nodefaults -qmp unix:/q,server -vga std -serial mon:stdio -rtc base=utc";
    let made = translate(&Line::parse(words.split_whitespace()).unwrap());
    assert!(
        made.remarks
            .iter()
            .all(|remark| remark.severity == Severity::Note),
        "{:?}",
        made.remarks
    );
    let named: Vec<&str> = made.remarks.iter().map(|remark| remark.option.as_str()).collect();
    assert_eq!(
        named,
        [
            "-name vm",
            "-nodefaults",
            "-qmp unix:/q,server",
            "-vga std",
            "-serial mon:stdio",
            "-rtc base=utc"
        ]
    );
}

#[test]
fn a_comma_in_a_path_cannot_be_said_by_flags() {
    let words = ["-kernel", "k", "-drive", "file=a,,b,format=raw,if=virtio"];
    let made = translate(&Line::parse(words).unwrap());
    assert_eq!(made.plan.disks[0].path.to_str(), Some("a,b"));
    assert!(
        run_flags(&made.plan)
            .unwrap_err()
            .to_string()
            .contains("--config")
    );
}
