# For scripts that use them: disks, tools, fio.

# disks: the names of those that we serve.
disks() {
    for disk in /sys/block/vd*; do
        [ "$(cat $disk/serial)" = fio ] || echo "${disk##*/}"
    done
}

# fio ARGUMENTS...: runs it from its own disk.
fio() {
    if [ ! -d /tools ]; then
        mkdir /tools
        for tools in /sys/block/vd*; do
            [ "$(cat $tools/serial)" != fio ] || mount -t ext4 -o ro /dev/${tools##*/} /tools || fail 'no fio'
        done
    fi
    /lib64/ld-linux-x86-64.so.2 --library-path /tools/lib /tools/fio "$@"
}
