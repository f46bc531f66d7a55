echo 'never ends'
while :; do
    dd if=/dev/vda of=/dev/null bs=64k 2>/dev/null
done
