package fault

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// mtu is large, because each packet costs this process two system calls.
const mtu = 9000

// Link describes what happens to the packets from one station to another.
type Link struct {
	// Cut drops all packets.
	Cut bool
	// Loss is the fraction of packets that are dropped, 0 to 1.
	Loss float64
	// Delay holds each packet back; up to Jitter is added at random, so that packets
	// overtake each other.
	Delay, Jitter time.Duration
}

// Network connects stations: the members, each in a network namespace of its own,
// and the clients, which are this process and what it starts.
type Network struct {
	stations []*station
	mu       sync.RWMutex
	links    map[[2]int]Link
	packets  atomic.Int64
	dropped  atomic.Int64
	stop     chan struct{}
	wg       sync.WaitGroup
}

// station is an end of the network.
type station struct {
	addr netip.Addr
	// tun is the device from which its packets are read and to which they are written.
	tun *os.File
	// namespace is /proc/self/fd/… of its network namespace; nil is this process's.
	namespace *os.File
	// late is the bounded queue of delayed packets. When it is full, packets are dropped, as by
	// a router.
	late chan struct{}
}

const maxLate = 20_000

// NewNetwork makes n stations in namespaces of their own, and a last one for the
// clients.
func NewNetwork(n int) (*Network, error) {
	w := &Network{links: map[[2]int]Link{}, stop: make(chan struct{})}
	for i := range n + 1 {
		s := &station{addr: netip.AddrFrom4([4]byte{10, 98, 0, byte(i + 1)}), late: make(chan struct{}, maxLate)}
		if err := s.open(i < n); err != nil {
			w.Close()
			return nil, fmt.Errorf("station %d: %w", i, err)
		}
		w.stations = append(w.stations, s)
	}
	for i := range w.stations {
		w.wg.Go(func() { w.forward(i) })
	}
	return w, nil
}

// Clients returns the station of the clients.
func (w *Network) Clients() int { return len(w.stations) - 1 }

// Addr returns a station's address.
func (w *Network) Addr(i int) netip.Addr { return w.stations[i].addr }

// Close ends the network.
func (w *Network) Close() {
	close(w.stop)
	for _, s := range w.stations {
		_ = s.tun.Close()
		if s.namespace != nil {
			_ = s.namespace.Close()
		}
	}
	w.wg.Wait()
}

// Set sets what happens to the packets from one station to another.
func (w *Network) Set(from, to int, l Link) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.links[[2]int{from, to}] = l
}

// Heal makes all links perfect.
func (w *Network) Heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.links)
}

// open makes the station's device, in a new namespace or in this one.
func (s *station) open(isolated bool) error {
	return inThread(func() error {
		if isolated {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			ns, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
			if err != nil {
				return err
			}
			s.namespace = ns
		}
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("/dev/net/tun: %w", err)
		}
		req, err := unix.NewIfreq("net0")
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return fmt.Errorf("TUNSETIFF: %w", err)
		}
		if err := unix.SetNonblock(fd, true); err != nil {
			return err
		}
		s.tun = os.NewFile(uintptr(fd), "net0")
		for _, args := range [][]string{
			{"link", "set", "lo", "up"},
			{"addr", "add", s.addr.String() + "/24", "dev", "net0"},
			{"link", "set", "net0", "mtu", fmt.Sprint(mtu), "txqueuelen", "10000", "up"},
		} {
			if err := run("ip", args...); err != nil {
				return err
			}
		}
		return nil
	})
}

// inThread calls f in a thread that ends afterwards, so f may change the thread's state.
func inThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked, so that the thread ends with its goroutine
		done <- f()
	}()
	return <-done
}

// enter moves the calling thread into the station's namespace.
func (s *station) enter() error {
	return unix.Setns(int(s.namespace.Fd()), unix.CLONE_NEWNET)
}

// forward carries the packets that one station sends.
func (w *Network) forward(from int) {
	buf := make([]byte, mtu+64)
	for {
		n, err := w.stations[from].tun.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil || n < 20 || buf[0]>>4 != 4 { // only IPv4 is forwarded
			select {
			case <-w.stop:
				return
			default:
				continue
			}
		}
		to := w.station(netip.AddrFrom4([4]byte(buf[16:20])))
		if to < 0 || to == from {
			continue
		}
		w.packets.Add(1)
		w.mu.RLock()
		l := w.links[[2]int{from, to}]
		w.mu.RUnlock()
		switch {
		case l.Cut, l.Loss > 0 && rand.Float64() < l.Loss:
			w.dropped.Add(1)
		case l.Delay == 0 && l.Jitter == 0:
			_, _ = w.stations[to].tun.Write(buf[:n]) // a full queue drops the packet
		default:
			w.later(w.stations[to], append([]byte(nil), buf[:n]...), l)
		}
	}
}

func (w *Network) later(to *station, packet []byte, l Link) {
	select {
	case to.late <- struct{}{}:
	default:
		w.dropped.Add(1)
		return
	}
	wait := l.Delay
	if l.Jitter > 0 {
		wait += rand.N(l.Jitter)
	}
	time.AfterFunc(wait, func() {
		<-to.late
		_, _ = to.tun.Write(packet)
	})
}

func (w *Network) station(addr netip.Addr) int {
	for i, s := range w.stations {
		if s.addr == addr {
			return i
		}
	}
	return -1
}
