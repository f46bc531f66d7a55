# The first boot leaves a mark on the disk and reboots; the second finds it and switches the machine off.
if [ "$(head -c 6 /dev/vda)" = second ]; then
    echo 'came back'
    finish 0
fi
printf second | dd of=/dev/vda conv=notrunc 2>/dev/null
sync
reboot -f
sleep 60
fail 'still here after a reboot'
