package fence_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/internal/fence"
)

const (
	tick = 10 * time.Millisecond
	// stall is the longest time that an agent hangs, or is down after a crash, and kill
	// the longest time until its signals have taken effect. Both are within StopAllowance.
	stall = 6 * time.Second
	kill  = time.Second
)

// The model is a cluster with virtual time: a store with one Lease a node and one pod an
// identity, nodes that run fence.Node, and a control plane that follows fence.Due. All
// clocks have their own offset and rate; messages are delayed, lost, and stored after
// their sender gave up; agents hang and crash; the control plane changes its process.
type model struct {
	*rand.Rand

	now     time.Duration
	queue   []event
	nodes   []*machine
	control *control
	pods    map[string]*pod // by identity
	made    int
	broken  string
	// troubled makes the network hold up messages, watches lag, and the scheduler sometimes
	// choose a node that is cut off.
	troubled bool
}

var identities = []string{"db-0", "db-1", "db-2", "db-3"}

type event struct {
	at time.Duration
	do func()
}

type pod struct {
	uid  types.UID
	node *machine
}

type clock struct {
	offset time.Duration
	rate   float64
}

func (c clock) read(now time.Duration) time.Duration {
	return c.offset + time.Duration(float64(now)*c.rate)
}

type machine struct {
	name  string
	clock clock
	// requests and answers are false while the network drops them.
	requests, answers bool

	// The stored Lease.
	version int
	promise fence.Promise

	// The agent: nil while it is down, blocked until a time while it hangs.
	agent   *fence.Node
	record  fence.Record
	blocked time.Duration
	next    time.Duration // of the heartbeat
	beat    time.Duration
	base    int // version that the next renewal replaces
	// view is what the agent knows of the pods, by identity.
	view map[string]*pod
	// running holds the pods with processes, and when they die, 0 for never.
	running map[types.UID]time.Duration
}

type control struct {
	clock clock
	seen  map[*machine]sighting
	// hears is false while no watch event arrives.
	hears bool
}

type sighting struct {
	version int
	promise fence.Promise
	at      time.Duration
}

func (m *model) after(d time.Duration, do func()) { m.queue = append(m.queue, event{m.now + d, do}) }

// upTo returns a duration of at most d, often d itself.
func (m *model) upTo(d time.Duration) time.Duration {
	if m.IntN(4) == 0 {
		return d
	}
	return time.Duration(m.Int64N(int64(d) + 1))
}

// lag is upTo, but short unless the model is troubled.
func (m *model) lag(d time.Duration) time.Duration {
	if m.troubled {
		return m.upTo(d)
	}
	return m.upTo(200 * time.Millisecond)
}

func newModel(seed uint64) *model {
	m := &model{Rand: rand.New(rand.NewPCG(seed, 9)), pods: map[string]*pod{}}
	clockOf := func() clock {
		rates := []float64{0.95, 1, 1.05} // at most 11 % apart
		return clock{m.upTo(time.Hour), rates[m.IntN(len(rates))]}
	}
	for i := range 3 {
		n := &machine{name: fmt.Sprintf("n%d", i), clock: clockOf(), requests: true, answers: true, agent: &fence.Node{}, beat: 2 * time.Second, view: map[string]*pod{}, running: map[types.UID]time.Duration{}}
		n.next = m.upTo(n.beat)
		m.nodes = append(m.nodes, n)
	}
	m.control = &control{clock: clockOf(), seen: map[*machine]sighting{}, hears: true}
	return m
}

// heartbeat sends a renewal, which is stored if it replaces the current version, and gives
// it up after a while.
func (m *model) heartbeat(n *machine) {
	agent := n.agent
	r := agent.Send(n.clock.read(m.now), fence.After(n.beat))
	m.write(n)
	base, delay := n.base, m.upTo(300*time.Millisecond)
	if m.troubled && m.IntN(20) == 0 {
		delay = m.upTo(20 * time.Second) // held up on the way, and stored late
	}
	back := m.upTo(300 * time.Millisecond)
	if m.troubled && m.IntN(20) == 0 {
		back = m.upTo(20 * time.Second)
	}
	patience := max(n.beat, 5*time.Second)
	n.next = m.now + patience + time.Second
	gaveUp := m.now + patience
	m.after(patience, func() {
		// The agent reads the Lease before the next attempt.
		if n.requests && n.answers {
			n.base = n.version
		}
	})
	if !n.requests {
		return
	}
	m.after(delay, func() {
		stored := base == n.version
		if stored {
			n.version++
			n.promise = r.Promise
			m.observe(n)
		}
		version := n.version
		m.after(back, func() {
			if !n.answers || n.agent != agent || m.now < n.blocked || m.now >= gaveUp {
				return
			}
			n.base, n.next = version, m.now+n.beat
			if stored {
				m.kill(n, agent.Renewed(r, n.clock.read(m.now)))
				m.write(n)
			}
		})
	})
}

func (m *model) write(n *machine) {
	r := n.agent.Record("boot")
	pods := map[types.UID]bool{}
	for uid, stopped := range r.Pods {
		pods[uid] = stopped
	}
	r.Pods = pods
	n.record = r
}

func (m *model) kill(n *machine, stop []types.UID) {
	for _, uid := range stop {
		if at, runs := n.running[uid]; runs && at == 0 {
			n.running[uid] = m.now + m.upTo(kill)
		}
	}
}

// observe shows the control plane a new version of a Lease, sooner or later.
func (m *model) observe(n *machine) {
	version, promise, c := n.version, n.promise, m.control
	m.after(m.lag(2*time.Second), func() {
		if c.hears && c.seen[n].version < version {
			c.seen[n] = sighting{version, promise, c.clock.read(m.now)}
		}
	})
}

// step moves time by one tick.
func (m *model) step() {
	m.now += tick
	for i := 0; i < len(m.queue); {
		if m.queue[i].at > m.now {
			i++
			continue
		}
		do := m.queue[i].do
		m.queue = slices.Delete(m.queue, i, i+1)
		do()
	}
	for _, n := range m.nodes {
		for uid, at := range n.running {
			if at != 0 && at <= m.now {
				delete(n.running, uid)
			}
		}
		if n.agent == nil || m.now < n.blocked {
			continue
		}
		if stop := n.agent.Check(n.clock.read(m.now)); len(stop) > 0 {
			m.write(n)
			m.kill(n, stop)
		}
		if m.now >= n.next {
			m.heartbeat(n)
		}
		m.sync(n)
	}
	m.supervise()
	m.recreate()
	for _, id := range identities {
		var where []string
		for _, n := range m.nodes {
			for uid := range n.running {
				if identity(uid) == id {
					where = append(where, fmt.Sprintf("%s on %s", uid, n.name))
				}
			}
		}
		if len(where) > 1 && m.broken == "" {
			m.broken = fmt.Sprintf("at %v: %v", m.now, where)
		}
	}
}

func identity(uid types.UID) string { return string(uid[:4]) }

// sync is the agent: it starts the pods that it knows of, and clears those that are gone.
func (m *model) sync(n *machine) {
	for _, id := range identities {
		if n.answers && (m.IntN(100) == 0 || !m.troubled && m.IntN(10) == 0) {
			n.view[id] = m.pods[id]
		}
		p := n.view[id]
		if p == nil || p.node != n {
			continue
		}
		if _, runs := n.running[p.uid]; runs || m.IntN(50) > 0 {
			continue
		}
		if n.agent.Enter(p.uid, n.clock.read(m.now)) == nil {
			m.write(n)
			n.running[p.uid] = 0
		}
	}
	for _, uid := range slices.Sorted(maps.Keys(n.record.Pods)) {
		if p := n.view[identity(uid)]; p != nil && p.uid == uid {
			continue
		}
		if at, runs := n.running[uid]; runs {
			if at == 0 {
				n.running[uid] = m.now + m.upTo(kill)
			}
			continue
		}
		n.agent.Leave(uid)
		m.write(n)
	}
}

// supervise is the control plane's side.
func (m *model) supervise() {
	c := m.control
	for _, n := range m.nodes {
		s, ok := c.seen[n]
		if !ok || c.clock.read(m.now)-s.at < fence.Due(s.promise) || len(s.promise.Pods) == 0 {
			continue
		}
		if n.version != s.version {
			continue // the read from the store shows a later version
		}
		c.seen[n] = sighting{version: s.version}
		for _, uid := range s.promise.Pods {
			m.after(m.lag(time.Second), func() {
				if p := m.pods[identity(uid)]; p != nil && p.uid == uid {
					m.pods[identity(uid)] = nil
				}
			})
		}
	}
}

// recreate is the workload's controller and the scheduler.
func (m *model) recreate() {
	for _, id := range identities {
		if m.pods[id] != nil || m.IntN(30) > 0 {
			continue
		}
		n := m.nodes[m.IntN(len(m.nodes))]
		if n.requests && n.answers || m.troubled && m.IntN(10) == 0 {
			m.made++
			m.pods[id] = &pod{types.UID(fmt.Sprintf("%s-%d", id, m.made)), n}
		}
	}
}

func (m *model) run(d time.Duration) {
	for end := m.now + d; m.now < end; {
		m.step()
	}
}

func (m *model) up() bool {
	for _, id := range identities {
		p := m.pods[id]
		if p == nil {
			return false
		}
		if at, runs := p.node.running[p.uid]; !runs || at != 0 {
			return false
		}
	}
	return true
}

// cut cuts a node off, in one direction or both.
func (m *model) cut(n *machine) {
	switch m.IntN(4) {
	case 0:
		n.requests = false
	case 1:
		n.answers = false
	default:
		n.requests, n.answers = false, false
	}
}

func (m *model) heal(n *machine) { n.requests, n.answers = true, true }

// trouble does something else than a partition.
func (m *model) trouble(n *machine) {
	switch m.IntN(5) {
	case 0: // the agent crashes, and its supervisor starts it again
		n.agent = nil
		m.after(m.upTo(stall), func() {
			r := n.record
			n.agent, n.blocked, n.next = fence.Restore(r, "boot"), 0, m.now
			stop := []types.UID{}
			for _, uid := range slices.Sorted(maps.Keys(r.Pods)) {
				if r.Pods[uid] {
					stop = append(stop, uid)
				}
			}
			m.kill(n, stop)
		})
	case 1: // the agent hangs
		n.blocked = m.now + m.upTo(stall)
	case 2: // another process of the control plane leads
		old := m.control
		m.control = &control{clock: clock{m.upTo(time.Hour), old.clock.rate}, seen: map[*machine]sighting{}, hears: true}
		for _, n := range m.nodes {
			m.observe(n)
		}
	case 3: // the control plane's watch stalls
		c := m.control
		c.hears = false
		m.after(m.upTo(30*time.Second), func() {
			c.hears = true
			for _, n := range m.nodes {
				m.observe(n)
			}
		})
	case 4: // heartbeats become slower or faster
		n.beat = []time.Duration{2 * time.Second, 4 * time.Second, 10 * time.Second}[m.IntN(3)]
	}
}

// TestNeverTwoOfOneIdentity cuts nodes off 200 times, in different ways and with other
// faults around it, and checks at each moment that no identity runs twice.
func TestNeverTwoOfOneIdentity(t *testing.T) {
	partitions, replaced := 0, 0
	for seed := uint64(0); partitions < 200; seed++ {
		m := newModel(seed)
		m.troubled = true
		m.run(20 * time.Second)
		for range 4 {
			partitions++
			before := m.made
			n := m.nodes[m.IntN(len(m.nodes))]
			m.cut(n)
			for range m.IntN(4) {
				m.after(m.upTo(40*time.Second), func() { m.trouble(m.nodes[m.IntN(len(m.nodes))]) })
			}
			m.run(m.upTo(60 * time.Second))
			m.heal(n)
			m.run(m.upTo(20 * time.Second))
			replaced += m.made - before
		}
		if m.broken != "" {
			t.Fatalf("seed %d: an identity runs twice %s", seed, m.broken)
		}
	}
	if replaced < partitions/2 {
		t.Errorf("%d pods were replaced in %d partitions: the model does too little", replaced, partitions)
	}
}

// TestReplacedWithin30Seconds cuts a node off for good, with nothing else going wrong, and
// checks that all identities run elsewhere within 30 s. It does so 200 times.
func TestReplacedWithin30Seconds(t *testing.T) {
	for seed := range uint64(200) {
		m := newModel(1000 + seed)
		for m.run(10 * time.Second); !m.up(); {
			m.step()
		}
		var n *machine
		for _, id := range identities {
			if n == nil || m.pods[id].node.name < n.name {
				n = m.pods[id].node
			}
		}
		m.run(5 * time.Second) // its promise names all its pods
		n.requests, n.answers = false, false
		began := m.now
		for m.run(time.Second); !m.up() || slices.ContainsFunc(identities, func(id string) bool { return m.pods[id].node == n }); m.step() {
			if m.now-began > 30*time.Second {
				t.Fatalf("seed %d: after 30 s, pods of %s are not replaced", seed, n.name)
			}
		}
		if m.broken != "" {
			t.Fatalf("seed %d: an identity runs twice %s", seed, m.broken)
		}
	}
}
