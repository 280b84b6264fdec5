package shutdown

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/prop"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/node/internal/pod"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		grace, critical time.Duration
		ok              bool
	}{{0, 0, true}, {30 * time.Second, 10 * time.Second, true}, {10 * time.Second, 10 * time.Second, true}, {10 * time.Second, 11 * time.Second, false}, {-1, 0, false}, {0, -1, false}} {
		if err := (Config{Grace: c.grace, Critical: c.critical}).Check(); (err == nil) != c.ok {
			t.Errorf("%s, %s: %v", c.grace, c.critical, err)
		}
	}
}

func TestPlan(t *testing.T) {
	critical := int32(2000000000)
	plain, system := newPod("plain"), newPod("system")
	system.Spec.Priority = &critical
	static := newPod("static")
	static.Annotations = map[string]string{pod.AnnotationSource: pod.SourceFile}
	text := func(groups []Group) (out string) {
		for _, g := range groups {
			for _, p := range g.Pods {
				out += p.Name + " "
			}
			out += g.Period.String() + "; "
		}
		return out
	}
	all := []*corev1.Pod{system, plain, static}
	for _, c := range []struct {
		pods  []*corev1.Pod
		limit time.Duration
		want  string
	}{
		{all, time.Minute, "plain 20s; system static 10s; "},
		{all, 15 * time.Second, "plain 10s; system static 5s; "},
		{[]*corev1.Pod{plain}, time.Minute, "plain 20s; "},
		{nil, time.Minute, ""},
	} {
		if got := text(Plan(c.pods, 30*time.Second, 10*time.Second, c.limit)); got != c.want {
			t.Errorf("limit %s: %q, want %q", c.limit, got, c.want)
		}
	}
}

func newPod(name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)}}
}

// agent records what is ended. A pod ends when finish is called for it.
type agent struct {
	mu    sync.Mutex
	pods  []*corev1.Pod
	ended map[types.UID]chan struct{}
	grace map[types.UID]time.Duration
}

func (a *agent) Active() []*corev1.Pod { return a.pods }

func (a *agent) Evict(uid types.UID, e pod.Ending) (<-chan struct{}, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if e.Reason != "Terminated" || len(e.Conditions) != 1 || e.Conditions[0].Reason != corev1.PodReasonTerminationByKubelet {
		return nil, fmt.Errorf("%+v", e)
	}
	a.grace[uid] = *e.Grace
	if a.ended[uid] == nil {
		a.ended[uid] = make(chan struct{})
	}
	return a.ended[uid], nil
}

func (a *agent) asked(uid types.UID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ended[uid] != nil
}

func (a *agent) finish(uid types.UID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	close(a.ended[uid])
}

// login is a logind on a message bus of its own.
type login struct {
	t    *testing.T
	conn *dbus.Conn
	bus  string
	conf string

	mu    sync.Mutex
	locks []int // read ends: at their end, the inhibitor has been released
	props *prop.Properties
	// obeys is true if logind reads its configuration again when it is told to.
	obeys bool
	// fails makes Inhibit fail, and failed counts how often it has.
	fails  bool
	failed int
}

// Inhibit implements org.freedesktop.login1.Manager.
func (l *login) Inhibit(what, _, _, mode string) (dbus.UnixFD, *dbus.Error) {
	if what != "shutdown" || mode != "delay" {
		return 0, dbus.MakeFailedError(fmt.Errorf("%s, %s", what, mode))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fails {
		l.failed++
		return 0, dbus.MakeFailedError(fmt.Errorf("out of inhibitors"))
	}
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return 0, dbus.MakeFailedError(err)
	}
	l.locks = append(l.locks, ends[0])
	time.AfterFunc(time.Second, func() { _ = unix.Close(ends[1]) }) // once the reply with a copy has been sent
	return dbus.UnixFD(ends[1]), nil
}

// KillUnit implements org.freedesktop.systemd1.Manager.
func (l *login) KillUnit(unit, _ string, signal int32) *dbus.Error {
	text, err := os.ReadFile(filepath.Join(l.conf, confName))
	if err != nil || unit != "systemd-logind.service" || signal != int32(unix.SIGHUP) {
		return dbus.MakeFailedError(fmt.Errorf("%s %d %w", unit, signal, err))
	}
	if _, value, ok := strings.Cut(string(text), "InhibitDelayMaxSec="); ok && l.obeys {
		d, err := time.ParseDuration(strings.TrimSpace(value) + "s")
		if err != nil {
			return dbus.MakeFailedError(err)
		}
		l.props.SetMust(logind+".Manager", "InhibitDelayMaxUSec", uint64(d/time.Microsecond))
	}
	return nil
}

// held reports how many inhibitors have been taken and how many are held.
func (l *login) held() (taken, held int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, fd := range l.locks {
		if n, err := unix.Read(fd, make([]byte, 1)); n == 0 && err == nil {
			continue
		}
		held++
	}
	return len(l.locks), held
}

func (l *login) signal(down bool) {
	l.t.Helper()
	if err := l.conn.Emit(manager, prepare, down); err != nil {
		l.t.Fatal(err)
	}
}

func startLogin(t *testing.T, limit time.Duration) *login {
	t.Helper()
	if _, err := exec.LookPath("dbus-daemon"); err != nil {
		if out, err := exec.Command("apt-get", "install", "-y", "-qq", "dbus-daemon").CombinedOutput(); err != nil {
			t.Fatalf("install dbus-daemon: %v: %s", err, out)
		}
	}
	dir := t.TempDir()
	socket := filepath.Join(dir, "bus")
	config := filepath.Join(dir, "bus.conf")
	text := fmt.Sprintf(`<busconfig><listen>unix:path=%s</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>`, socket)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("dbus-daemon", "--config-file="+config, "--nofork", "--nopidfile")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	l := &login{t: t, bus: "unix:path=" + socket, conf: filepath.Join(dir, "logind.conf.d")}
	until(t, "the bus answers", func() bool {
		var err error
		l.conn, err = dbus.Connect(l.bus)
		return err == nil
	})
	t.Cleanup(func() { _ = l.conn.Close() })
	var err error
	l.props, err = prop.Export(l.conn, manager, prop.Map{logind + ".Manager": {"InhibitDelayMaxUSec": {Value: uint64(limit / time.Microsecond), Emit: prop.EmitFalse}}})
	for _, f := range []func() error{
		func() error { return err },
		func() error { return l.conn.Export(l, manager, logind+".Manager") },
		func() error { return l.conn.Export(l, "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager") },
	} {
		if err := f(); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{logind, "org.freedesktop.systemd1"} {
		if _, err := l.conn.RequestName(name, dbus.NameFlagDoNotQueue); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal("timed out waiting until " + what)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// run starts a Watcher that ends with the test.
func run(t *testing.T, l *login, a *agent, grace, critical time.Duration) *Watcher {
	t.Helper()
	w := New(Config{Node: "n", Agent: a, Grace: grace, Critical: critical, Bus: l.bus, LogindConf: l.conf})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	until(t, "an inhibitor is held", func() bool { taken, held := l.held(); return taken == 1 && held == 1 })
	return w
}

// TestShutdown checks that pods end in order, that the machine waits for them and no longer,
// and that a cancelled shutdown is forgotten.
func TestShutdown(t *testing.T) {
	l := startLogin(t, time.Second)
	l.obeys = true
	critical := int32(2000000000)
	plain, system := newPod("plain"), newPod("system")
	system.Spec.Priority = &critical
	a := &agent{pods: []*corev1.Pod{system, plain}, ended: map[types.UID]chan struct{}{}, grace: map[types.UID]time.Duration{}}
	w := run(t, l, a, time.Hour, 10*time.Minute)
	if w.Active() || w.Admit(plain) != nil {
		t.Error("active before a shutdown")
	}
	l.signal(true)
	until(t, "the plain pod is asked to end", func() bool { return a.asked("plain") })
	if !w.Active() || w.Admit(plain) == nil || w.Admit(plain).Reason != "NodeShutdown" {
		t.Error("not active during a shutdown")
	}
	if a.asked("system") {
		t.Error("the critical pod ends together with the others")
	}
	a.finish("plain")
	until(t, "the critical pod is asked to end", func() bool { return a.asked("system") })
	if _, held := l.held(); held != 1 {
		t.Error("the machine does not wait for the critical pod")
	}
	if a.grace["plain"] != 50*time.Minute || a.grace["system"] != 10*time.Minute {
		t.Errorf("grace periods: %v", a.grace)
	}
	a.finish("system")
	until(t, "the inhibitor is released", func() bool { _, held := l.held(); return held == 0 })
	l.signal(false)
	until(t, "another inhibitor is held", func() bool { taken, held := l.held(); return taken == 2 && held == 1 })
	until(t, "the node works again", func() bool { return !w.Active() && w.Admit(plain) == nil })
}

// TestShutdownIsBounded checks that the machine does not wait longer than logind's limit for
// a pod that does not end, if that limit cannot be raised.
func TestShutdownIsBounded(t *testing.T) {
	l := startLogin(t, 2*time.Second)
	a := &agent{pods: []*corev1.Pod{newPod("stuck")}, ended: map[types.UID]chan struct{}{}, grace: map[types.UID]time.Duration{}}
	run(t, l, a, time.Hour, 30*time.Minute)
	l.signal(true)
	until(t, "the pod is asked to end", func() bool { return a.asked("stuck") })
	until(t, "the inhibitor is released", func() bool { _, held := l.held(); return held == 0 })
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.grace["stuck"] != time.Second {
		t.Errorf("grace period: %s, want the same part of 2 s as of the hour", a.grace["stuck"])
	}
}

// TestCancelledWithoutInhibitor checks that a node works on if a shutdown is cancelled and
// logind grants no other inhibitor.
func TestCancelledWithoutInhibitor(t *testing.T) {
	l := startLogin(t, time.Hour)
	a := &agent{ended: map[types.UID]chan struct{}{}, grace: map[types.UID]time.Duration{}}
	w := run(t, l, a, time.Minute, 0)
	l.signal(true)
	until(t, "the inhibitor is released", func() bool { _, held := l.held(); return held == 0 })
	l.mu.Lock()
	l.fails = true
	l.mu.Unlock()
	l.signal(false)
	until(t, "an inhibitor is refused", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.failed > 0 })
	until(t, "the node works again", func() bool { return !w.Active() })
}

// TestWithoutBus checks that a machine without a message bus is served.
func TestWithoutBus(t *testing.T) {
	w := New(Config{Grace: time.Minute, Bus: "unix:path=" + filepath.Join(t.TempDir(), "absent")})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	if w.Admit(newPod("p")) != nil {
		t.Error("a pod was refused")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
