# What other people's tools make of the targets.
wait_until 20 [ -b /dev/sdb ] || { dmesg | tail -n 40; fail 'no disks'; }
has() {
    grep -q "$2" /tmp/out || { cat /tmp/out; fail "$1: no '$2'"; }
}
run() {
    "$@" >/tmp/out 2>&1 || { cat /tmp/out; fail "$*"; }
}
run sg_inq /dev/sda
has sg_inq 'Product identification: DISK'
has sg_inq 'CmdQue=1'
run sg_vpd -p sv /dev/sda
for page in 0x80 0x83 0xb0 0xb1 0xb2; do
    run sg_vpd -p $page /dev/sda
done
run sg_vpd -p sn /dev/sda
has serial TREATY-A
run sg_vpd -p lbpv /dev/sda
has provisioning 'LBPU=1'
run sg_luns /dev/sda
run sg_readcap --16 /dev/sda
has sg_readcap 'Last LBA=32767'
has sg_readcap 'lbpme=1'
run sg_modes -a /dev/sda
run sg_opcodes /dev/sda
has sg_opcodes 'Persistent reserve in'

head -c 1m /dev/urandom >/tmp/random
dd if=/tmp/random of=/dev/sda bs=64k conv=fsync 2>/dev/null || fail write
run sg_unmap --lba=0 --num=128 /dev/sda
run sg_write_same --16 --lba=128 --num=128 --in=/tmp/random --xferlen=512 /dev/sda
run sg_write_same --10 --unmap --lba=256 --num=128 --in=/dev/zero --xferlen=512 /dev/sda
run sg_write_same --32 --lba=384 --num=128 --in=/tmp/random --xferlen=512 /dev/sda
echo 3 >/proc/sys/vm/drop_caches
block() {
    dd if=/dev/sda bs=512 skip=$1 count=1 2>/dev/null | md5sum
}
first=$(dd if=/tmp/random bs=512 count=1 2>/dev/null | md5sum)
nothing=$(dd if=/dev/zero bs=512 count=1 2>/dev/null | md5sum)
want 'an unmapped block' "$(block 5)" "$nothing"
want 'a block written by WRITE SAME 16' "$(block 255)" "$first"
want 'a block zeroed by WRITE SAME 10' "$(block 300)" "$nothing"
want 'a block written by WRITE SAME 32' "$(block 500)" "$first"
run sg_verify --lba=0 --count=2048 /dev/sda
run sg_verify --lba=128 --count=1 --bytchk=1 --in=/tmp/random /dev/sda
sg_verify --lba=5 --count=1 --bytchk=1 --in=/tmp/random /dev/sda >/tmp/out 2>&1 && fail 'other data are the same'
has miscompare '[Mm]iscompare'

key=0xabc123
run sg_persist --out --register --param-sark=$key /dev/sda
run sg_persist --in --read-keys /dev/sda
has keys $key
run sg_persist --out --reserve --param-rk=$key --prout-type=1 /dev/sda
run sg_persist --in --read-reservation /dev/sda
has reservation 'Write Exclusive'
run sg_persist --in --report-capabilities /dev/sda
run sg_persist --in --read-full-status /dev/sda
has 'full status' $key
run sg_persist --out --release --param-rk=$key --prout-type=1 /dev/sda
run sg_persist --out --clear --param-rk=$key /dev/sda

want 'read-only' "$(cat /sys/block/sdb/ro)" 1
sg_unmap --lba=0 --num=1 /dev/sdb >/tmp/out 2>&1 && fail 'a read-only disk was unmapped'
echo checked
