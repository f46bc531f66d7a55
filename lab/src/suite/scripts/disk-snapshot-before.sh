libraries=$LAB_PEERS/usr/lib/x86_64-linux-gnu
cat >judge.sh <<END
qemu_img() {
    "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries:$LAB_PEERS/lib/x86_64-linux-gnu" "$LAB_PEERS/usr/bin/qemu-img" "\$@"
}
END
truncate -s 16M vda.raw
truncate -s 512 signal
"$LAB_TREATY" img create -q -f qcow2 -o lazy_refcounts=on sda.qcow2 16M
mkdir small && mount -t tmpfs -o size=64k none small
