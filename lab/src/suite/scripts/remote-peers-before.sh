mkdir www
head -c 8000000 /dev/urandom >www/large
sum www/large >www/sum
truncate -s 96M raw
$(peer bin/qemu-img) create -q -f qcow2 qcow2 96M || fail qemu-img
start_disks
daemon passt $(peer bin/passt) --vhost-user -f --socket-path "$W/passt.sock"
daemon folder $(peer libexec/virtiofsd) --socket-path "$W/fs.sock" --shared-dir "$W/www" --sandbox none
listening passt
listening fs
