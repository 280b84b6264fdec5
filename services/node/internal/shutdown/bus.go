package shutdown

import (
	"context"
	"fmt"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// bus is a connection to the system's message bus.
type bus struct{ conn *dbus.Conn }

// inhibitor delays the machine's shutdown until it is released.
type inhibitor struct{ fd int }

// release lets the machine shut down. It may be called again, and on nil.
func (i *inhibitor) release() {
	if i != nil && i.fd >= 0 {
		_ = unix.Close(i.fd)
		i.fd = -1
	}
}

// inhibit takes a delay inhibitor.
func (b *bus) inhibit(ctx context.Context) (*inhibitor, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var fd dbus.UnixFD
	err := b.conn.Object(logind, manager).CallWithContext(ctx, logind+".Manager.Inhibit", 0,
		"shutdown", "keelson node", "pods end before the machine is shut down", "delay").Store(&fd)
	if err != nil {
		return nil, fmt.Errorf("inhibit the shutdown: %w", err)
	}
	return &inhibitor{fd: int(fd)}, nil
}

// limit returns how long logind waits for inhibitors.
func (b *bus) limit() (time.Duration, error) {
	v, err := b.conn.Object(logind, manager).GetProperty(logind + ".Manager.InhibitDelayMaxUSec")
	if err != nil {
		return 0, fmt.Errorf("read logind's limit: %w", err)
	}
	us, ok := v.Value().(uint64)
	if !ok {
		return 0, fmt.Errorf("read logind's limit: it is a %T", v.Value())
	}
	return time.Duration(min(us, uint64(time.Hour/time.Microsecond)*24)) * time.Microsecond, nil
}

// reload makes logind read its configuration again.
func (b *bus) reload(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	systemd := b.conn.Object("org.freedesktop.systemd1", "/org/freedesktop/systemd1")
	call := systemd.CallWithContext(ctx, "org.freedesktop.systemd1.Manager.KillUnit", 0, "systemd-logind.service", "all", int32(unix.SIGHUP))
	if call.Err != nil {
		return fmt.Errorf("reload logind's configuration: %w", call.Err)
	}
	return nil
}
