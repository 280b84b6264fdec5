// Package fence ends the epoch of a leader when the next one begins: from then on no write of the
// old leader is accepted, however long it has been in flight.
//
// A leader is elected with a Lease, which it must renew in time or stop. That keeps well-behaved
// leaders apart, but not one that was paused, or whose packets were delayed, between checking the
// clock and the arrival of its write. The right to write is therefore recorded a second time,
// where the writes go: in a key of each store, /keelson/fence/NAMESPACE/LEASE, whose revision is
// the epoch. Each fenced write contains that revision and is committed in one transaction with
// the comparison (store.Write.Fence), in the object's own store and with that store's key.
//
// # Taking
//
// A leader calls Take after it has acquired the Lease and before it starts its work. Take has
// three steps:
//
//  1. Read the key's revision in both stores, linearizably.
//  2. Then read the Lease, linearizably, and refuse unless it still shows the caller's
//     acquisition: the same object (uid), the same holder, the same leaseTransitions.
//     Renewals do not matter.
//  3. Write the key in both stores, each on the condition of the revision read in step 1.
//     After a conflict, start over from step 1.
//
// The two new revisions are the token.
//
// # Why an old leader can never take after a newer one
//
// Acquisitions of a Lease are ordered: each one is a write on the condition of the Lease's
// revision, leaseTransitions increases when the holder changes, and a deleted Lease is recreated
// with another uid. Once the Lease shows the acquisition of B, it therefore never again shows the
// earlier one of A.
//
// Let B have taken: in each store B's step 3 has happened, and before it B's step 2 read B's
// acquisition. Suppose that a step 3 of A is executed in one of the stores after B's step 3
// there, however late. Its condition holds only if A's step 1 read B's revision or a later one,
// because revisions never return. Then A's step 1 came after B's step 3, so A's step 2 came after
// B's step 2 and, being linearizable, read B's acquisition or a later one. Hence A was refused,
// and there is no such step 3. This holds for any process that serves any of the calls, for
// repeated and delayed calls, and for each store alone, so the two stores need not be written
// atomically. While only one of them is written, B has no token and does nothing yet; A's writes
// to that store are refused already, and A's writes to the other still belong to an epoch that
// has not ended.
//
// # Failures
//
//   - The outcome of step 3 is unknown, or the response was lost: the caller takes again. The
//     epoch that may have begun belongs to no leader.
//   - Only one store was written: as above, taking again ends that epoch.
//   - A store has no majority: there is no token and no new leader, and nothing can be written
//     to that store either.
//   - A store was emptied or restored to an earlier state: revisions are compared for equality,
//     so current tokens are refused, or the epoch of that time is valid again until the leader
//     takes again. An operator who restores a store must raise its revision above all that it
//     has ever issued, which watches need as well; otherwise a token could match a later epoch.
//
// Renewing the Lease is not fenced: a renewal is conditional on the Lease's own revision, so a
// late one fails if another holder has acquired the Lease.
//
// A key is never deleted, so that no token becomes valid again; their number is bounded instead.
// The package must never report that a token is valid: only the transaction of a write decides
// that.
package fence

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/google/uuid"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/watchcache"
)

const (
	prefix = pipeline.FencePrefix
	// maxKeys bounds the number of Leases that have ever been fenced.
	maxKeys = 4096
	// maxTries bounds how often Take starts over because of a concurrent Take.
	maxTries = 16
	// maxToken is longer than any token, in bytes.
	maxToken = 1024
)

var leases = coordinationv1.SchemeGroupVersion.WithResource("leases")

// Authorizer authorizes requests. The pipeline implements it.
type Authorizer interface {
	Authorize(ctx context.Context, verb string, t pipeline.Target) error
}

// Fences manages the epochs of a cluster.
type Fences struct {
	rights             Authorizer
	lease              *resource.Kind
	lasting, transient store.Store
}

// New returns the fences of the two stores, which may be the same store.
func New(rights Authorizer, table *resource.Table, lasting, transient store.Store) *Fences {
	return &Fences{rights: rights, lease: table.ByResource(leases), lasting: lasting, transient: transient}
}

// Acquisition identifies one acquisition of a Lease by a holder.
type Acquisition struct {
	Namespace, Name, UID, Holder string
	Transitions                  int32
}

func (a *Acquisition) check() error {
	for _, s := range []string{a.Namespace, a.Name, a.UID, a.Holder} {
		if s == "" {
			return apierrors.NewBadRequest("an acquisition needs the namespace, name and uid of a Lease, and its holder")
		}
	}
	if strings.Contains(a.Namespace+a.Name, "/") {
		return apierrors.NewBadRequest("the namespace and name of a Lease must not contain a slash")
	}
	if a.Namespace == corev1.NamespaceNodeLease {
		return apierrors.NewBadRequest("the Lease of a node is not an election")
	}
	return nil
}

// Take begins the epoch of an acquisition and returns its token. Its errors are
// *apierrors.StatusError, except those of a context that ended.
func (f *Fences) Take(ctx context.Context, a Acquisition) (string, error) {
	target := pipeline.Target{Resource: leases, Namespace: a.Namespace, Name: a.Name}
	if err := f.rights.Authorize(ctx, "update", target); err != nil {
		return "", err
	}
	if err := a.check(); err != nil {
		return "", err
	}
	for range maxTries {
		token, err := f.take(ctx, &a)
		var status *apierrors.StatusError
		switch {
		case err == nil, errors.As(err, &status), ctx.Err() != nil:
			return token, err
		case errors.Is(err, store.ErrConflict), errors.Is(err, store.ErrExists):
			continue
		}
		// Whatever the error was, the caller may try again.
		return "", apierrors.NewServiceUnavailable(err.Error() + ", please try again")
	}
	return "", pipeline.Fenced(leases.GroupResource(), a.Name, "its fence was taken by others in every attempt")
}

// take makes one attempt. A conflict means that the caller should make another.
func (f *Fences) take(ctx context.Context, a *Acquisition) (string, error) {
	key := prefix + a.Namespace + "/" + a.Name
	stores := []store.Store{f.lasting}
	if f.transient != f.lasting {
		stores = append(stores, f.transient)
	}
	found := make([]store.Revision, len(stores))
	for i, s := range stores {
		e, _, err := s.Get(ctx, key)
		switch {
		case errors.Is(err, store.ErrNotFound):
			if err := f.room(ctx, s); err != nil {
				return "", err
			}
		case err != nil:
			return "", err
		}
		found[i] = e.ModRevision
	}
	if err := f.holds(ctx, a); err != nil {
		return "", err
	}
	value, err := json.Marshal(map[string]any{
		"holder": a.Holder, "uid": a.UID, "transitions": a.Transitions, "id": uuid.NewString(),
	})
	if err != nil {
		return "", err
	}
	revisions := make([]store.Revision, len(stores))
	for i, s := range stores {
		verdicts, err := s.Commit(ctx, []store.Write{{
			Key: key, Value: value, Expect: found[i],
			Settled: func(b []byte) bool { return bytes.Equal(b, value) },
		}})
		if err == nil {
			err = verdicts[0].Err
		}
		if errors.Is(err, store.ErrNotFound) { // the key existed in step 1: the store was restored
			err = store.ErrConflict
		}
		if err != nil {
			return "", fmt.Errorf("fence of lease %s/%s: %w", a.Namespace, a.Name, err)
		}
		revisions[i] = verdicts[0].Revision
	}
	return format(request.Fence{Key: key, Lasting: int64(revisions[0]), Transient: int64(revisions[len(revisions)-1])}), nil
}

// room returns an error if there are already maxKeys keys.
func (f *Fences) room(ctx context.Context, s store.Store) error {
	page, err := s.List(ctx, prefix, store.ListOptions{Limit: 1})
	if err != nil {
		return err
	}
	if page.Count >= maxKeys {
		return apierrors.NewTooManyRequests(fmt.Sprintf("%d Leases are fenced, which is the maximum", page.Count), 60)
	}
	return nil
}

// holds returns an error unless the Lease currently shows the caller's acquisition.
func (f *Fences) holds(ctx context.Context, a *Acquisition) error {
	entry, _, err := f.transient.Get(ctx, f.lease.Key(a.Namespace, a.Name))
	if errors.Is(err, store.ErrNotFound) {
		return pipeline.Fenced(leases.GroupResource(), a.Name, "the Lease does not exist")
	}
	if err != nil {
		return err
	}
	item, err := watchcache.Decode(f.lease, entry)
	if err != nil {
		return err
	}
	l, ok := item.Object().(*coordinationv1.Lease)
	if !ok {
		return fmt.Errorf("lease %s/%s: expected a Lease, got %T", a.Namespace, a.Name, item.Object())
	}
	holder, transitions := "", int32(0)
	if l.Spec.HolderIdentity != nil {
		holder = *l.Spec.HolderIdentity
	}
	if l.Spec.LeaseTransitions != nil {
		transitions = *l.Spec.LeaseTransitions
	}
	if string(l.UID) != a.UID || holder != a.Holder || transitions != a.Transitions {
		return pipeline.Fenced(leases.GroupResource(), a.Name, fmt.Sprintf("the Lease is held by %q since transition %d", holder, transitions))
	}
	return nil
}

// format returns a token: NAMESPACE/LEASE and the two revisions.
func format(f request.Fence) string {
	return fmt.Sprintf("%s %d %d", strings.TrimPrefix(f.Key, prefix), f.Lasting, f.Transient)
}

// Parse parses a token. The error is a BadRequest.
func Parse(token string) (request.Fence, error) {
	parts := strings.Split(token, " ")
	if len(token) > maxToken || len(parts) != 3 || parts[0] == "" {
		return request.Fence{}, apierrors.NewBadRequest("invalid fence token")
	}
	out := request.Fence{Key: prefix + parts[0]}
	var err error
	for i, to := range []*int64{&out.Lasting, &out.Transient} {
		// Revision 0 would match a key that was never written.
		if *to, err = strconv.ParseInt(parts[i+1], 10, 64); err != nil || *to <= 0 {
			return request.Fence{}, apierrors.NewBadRequest("invalid fence token")
		}
	}
	return out, nil
}
