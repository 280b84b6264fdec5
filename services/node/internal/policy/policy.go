// Package policy enforces NetworkPolicies (networking.k8s.io/v1) on the pods of a node, with one
// nftables table, `ip keelson-policy`.
//
// # What is enforced
//
// Every packet of a pod passes the node's IP layer (see package cni), so one table sees what pods
// of one node send each other as well as what crosses nodes. A connection between two pods passes
// the egress rules on the node of the client and the ingress rules on that of the server, both
// after the translation of Service addresses: rules see the address and port of the pod. Replies
// are recognized by connection tracking. Traffic between a pod and its own node (probes, cluster
// DNS) and from a pod to itself is always allowed, as Kubernetes documents. Pods on the network of
// their node are neither selected nor peers.
//
// A pod's packets must come from its own interface with its own address. All others that claim a
// pod's address are dropped, because peers are recognized by their address.
//
// # States
//
//   - Unknown: the policies, or the pods of this node, have not been read since the start. The table
//     stays as an earlier process left it, and no container of a new pod starts.
//   - Idle: there is no NetworkPolicy in the cluster. There is no table, and the pods of other nodes
//     are not watched.
//   - Enforcing: the table follows policies, namespaces, pods and the pods of this node. A change
//     becomes one atomic transaction with the difference. When another program changes the table, it
//     is replaced atomically.
//
// # Failures
//
//   - The API is away: the rules stay as they are. A pod whose policies cannot be confirmed is held
//     back; one that was admitted before restarts its containers.
//   - A transaction fails: the old rules stay in force, the next transaction replaces the whole
//     table, and pods that wait are held back until one succeeds.
//   - The process ends: the table stays. A pod that the runtime has and the API does not is cut off
//     until it is removed, because its labels are not known.
//   - The pod of an address is not known, or no longer, or the address is not in the range of the
//     pod's node: it is no peer of any rule.
//
// # Invariants
//
//   - No container of a pod starts before the rules of all policies that were acknowledged before
//     the pod was created are in force for it (Admit).
//   - Rules are never absent between two versions.
//   - Once a change is applied, no connection that it forbids passes another packet: its entry in
//     connection tracking is removed, and TCP packets that begin no connection are answered with a
//     reset.
//   - Plan is a pure function. The kernel is called only by the goroutine that calls Run.
//
// The package must never change a table other than its own, and never pass a packet that another
// table drops.
package policy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/knftables"

	"keelson.dev/services/node/internal/nftwatch"
)

// TableName is the name of the table, in the family ip.
const TableName = "keelson-policy"

// Source provides what policies depend on; netcache.Policies implements it.
type Source interface {
	// Policies returns all NetworkPolicies, and whether they and the namespaces have been read.
	Policies() (list []*networkingv1.NetworkPolicy, known bool)
	// Namespaces returns the labels of all namespaces by name.
	Namespaces() map[string]map[string]string
	// Pods returns the records of all pods, and whether they and the nodes have been read. The first
	// call begins to read them.
	Pods() (list []*Pod, known bool)
	// Ranges returns the pod ranges of the nodes by name.
	Ranges() map[string][]netip.Prefix
	// CatchUp waits until Policies has every policy of a namespace that was acknowledged before the
	// call.
	CatchUp(ctx context.Context, namespace string) error
	// Subscribe calls f after each change. urgent is true for a change of a policy. f must not
	// block.
	Subscribe(f func(urgent bool))
}

// Config configures an Enforcer.
type Config struct {
	// Source provides policies, namespaces and pods.
	Source Source
	// Metrics may be nil.
	Metrics *Metrics
	// Log may be nil; then the default logger is used.
	Log *slog.Logger
	// applied is called by tests after each pass.
	applied func(Applied)
}

// Applied describes a transaction.
type Applied struct {
	// Policies is the number of policies, and Isolated that of the node's pods that they select.
	Policies, Isolated int
	// Full is true if the whole table was replaced.
	Full bool
	// Operations is the number of operations in the transaction.
	Operations int
	// Cut is the number of connections that were ended.
	Cut int
	// Planned is how long the plan took, and Took the whole pass.
	Planned, Took time.Duration
}

const (
	retryFirst = 100 * time.Millisecond
	retryMost  = 5 * time.Second
	// calm is the least time between passes for changes of other nodes' pods.
	calm = 100 * time.Millisecond
	// patience bounds how long Admit waits.
	patience = 10 * time.Second
)

// Enforcer enforces policies. It is safe for concurrent use; Run is called once.
type Enforcer struct {
	cfg  Config
	log  *slog.Logger
	wake chan struct{} // something changed
	rush chan struct{} // something changed that must not wait

	mu     sync.Mutex
	locals map[types.UID]Local
	known  bool // Known was called
	// seq counts the changes of locals and the calls of Admit; done is the one up to which the
	// kernel has them. passed is closed, and replaced, after each pass.
	seq, done uint64
	passed    chan struct{}
	// inForce holds the addresses of the pods that the rules in force know. idle is true while there
	// are no policies.
	inForce map[types.UID]netip.Addr
	idle    bool
	// caughtUp holds the pods whose policies have been confirmed.
	caughtUp map[types.UID]bool
	lastErr  error
}

// New returns an Enforcer. It admits no pod until Run is called.
func New(cfg Config) *Enforcer {
	e := &Enforcer{
		cfg: cfg, log: cfg.Log, wake: make(chan struct{}, 1), rush: make(chan struct{}, 1),
		locals: map[types.UID]Local{}, passed: make(chan struct{}), caughtUp: map[types.UID]bool{},
	}
	if e.log == nil {
		e.log = slog.Default()
	}
	cfg.Source.Subscribe(func(urgent bool) {
		if urgent {
			nudge(e.rush)
		} else {
			nudge(e.wake)
		}
	})
	return e
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Known sets the pods of this node that run. It must be called after a start; until then the table
// stays as the earlier process left it. Pods that were set by Update before are kept.
func (e *Enforcer) Known(running []Local) {
	e.mu.Lock()
	for _, l := range running {
		if _, ok := e.locals[l.UID()]; !ok {
			e.locals[l.UID()] = l
			e.caughtUp[l.UID()] = true
		}
	}
	e.known = true
	e.seq++
	e.mu.Unlock()
	nudge(e.rush)
}

// Update sets the labels and the address of a pod of this node. A pod on the network of the node, or
// without an address, is forgotten.
func (e *Enforcer) Update(p *corev1.Pod, addr string) {
	e.update(p, addr)
}

func (e *Enforcer) update(p *corev1.Pod, addr string) bool {
	ip, err := netip.ParseAddr(addr)
	if err != nil || !ip.Is4() || p.Spec.HostNetwork {
		e.Forget(p.UID)
		return false
	}
	l := NewLocal(p, ip)
	e.mu.Lock()
	defer e.mu.Unlock()
	old, ok := e.locals[p.UID]
	if ok && old.same(l) {
		return true
	}
	e.seq++
	if l.born, l.since = old.born, old.since; !ok || old.Pod.Addr != ip {
		l.born = e.seq
		delete(e.caughtUp, p.UID)
	}
	e.locals[p.UID] = l
	nudge(e.rush)
	return true
}

// Forget drops a pod of this node that has ended.
func (e *Enforcer) Forget(uid types.UID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, ok := e.locals[uid]; !ok {
		return
	}
	delete(e.locals, uid)
	delete(e.caughtUp, uid)
	e.seq++
	nudge(e.wake)
}

// Admit returns once the policies of a pod are in force for its address. Until then no container of
// the pod may start. The error says what it waits for.
func (e *Enforcer) Admit(ctx context.Context, p *corev1.Pod, addr string) error {
	if p.Spec.HostNetwork {
		return nil
	}
	if !e.update(p, addr) {
		return fmt.Errorf("network policies: the pod has no IPv4 address: %q", addr)
	}
	if e.admitted(p.UID) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := e.confirm(ctx, p); err != nil {
		return fmt.Errorf("network policies have not been read: %w", err)
	}
	for {
		e.mu.Lock()
		passed, last := e.passed, e.lastErr
		e.mu.Unlock()
		if e.admitted(p.UID) {
			return nil
		}
		select {
		case <-passed:
		case <-ctx.Done():
			if last == nil {
				last = ctx.Err()
			}
			return fmt.Errorf("network policies are not in force for the pod yet: %w", last)
		}
	}
}

// confirm makes sure that the policies of a pod's namespace are known.
func (e *Enforcer) confirm(ctx context.Context, p *corev1.Pod) error {
	e.mu.Lock()
	sure := e.caughtUp[p.UID]
	e.mu.Unlock()
	if sure {
		return nil
	}
	if err := e.cfg.Source.CatchUp(ctx, p.Namespace); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if l, ok := e.locals[p.UID]; ok {
		e.caughtUp[p.UID] = true
		e.seq++ // only a pass that begins now has these policies
		l.since = e.seq
		e.locals[p.UID] = l
		nudge(e.rush)
	}
	return nil
}

// admitted reports whether the rules in force know the pod, and its policies were confirmed before.
func (e *Enforcer) admitted(uid types.UID) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	l, ok := e.locals[uid]
	if !ok || !e.caughtUp[uid] || e.done < l.since {
		return false
	}
	return e.idle || e.inForce[uid] == l.Pod.Addr
}

// Run keeps the table up to date until ctx ends. The table remains when Run returns, so that pods
// stay protected while the program restarts; Cleanup removes it. All kernel calls are made by the
// calling goroutine, so the caller may lock it to a network namespace.
func (e *Enforcer) Run(ctx context.Context) error {
	nft, err := knftables.New(knftables.IPv4Family, TableName)
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	watch, err := nftwatch.Table(TableName)
	if err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	defer watch.Close()
	s := &syncer{e: e, nft: nft, watch: watch, compiled: map[types.UID]*Policy{}, links: map[sandbox]string{}, full: true}
	retry := retryFirst
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-e.rush:
		case <-e.wake:
			select { // changes of other nodes' pods come in bursts
			case <-ctx.Done():
				return nil
			case <-e.rush:
			case <-watch.Foreign:
				s.repair(ctx)
			case <-time.After(time.Until(s.last.Add(calm))):
			}
		case <-timer.C:
		case <-watch.Foreign:
			s.repair(ctx)
		}
		applied, err := s.pass(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if !errors.Is(err, errUnknown) {
				s.full = true
				e.cfg.Metrics.failed()
				e.log.ErrorContext(ctx, "network policies were not applied, will retry", "error", err, "retry", retry)
			}
			timer.Reset(retry)
			retry = min(2*retry, retryMost)
			continue
		}
		retry = retryFirst
		if s.uncut != nil {
			timer.Reset(retryFirst)
		}
		e.cfg.Metrics.applied(applied)
		if e.cfg.applied != nil {
			e.cfg.applied(applied)
		}
	}
}

// Cleanup removes the table. It is not an error if there is none.
func Cleanup(ctx context.Context) error {
	nft, err := knftables.New(knftables.IPv4Family, TableName)
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	if err := nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("remove table %s: %w", TableName, err)
	}
	return nil
}
