# The kernel's ACPI driver turns the button into an input event, and the guest decides to end.
button=$(dirname "$(grep -l '^Power Button$' /sys/class/input/event*/device/name | head -1)")
button=/dev/input/$(basename "$(dirname "$button")")
[ -e "$button" ] || fail "no power button: $(cat /sys/class/input/event*/device/name)"
(head -c 24 "$button" >/tmp/event) &
echo 'press now'
wait_until 30 test -s /tmp/event || fail 'nobody pressed the power button'
echo 'was pressed'
