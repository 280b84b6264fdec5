// Package fence ends the epoch of a leader when the next one begins: after that,
// no write of the old one is accepted, however long it was on its way.
//
// A leader is elected by a Lease, which it renews in time or stops. That keeps
// well-behaved leaders apart, but not one that was paused, or whose packets were
// held up, between its look at the clock and the arrival of its write. So the
// right to write is a second thing, which lies where the writes go: a key of each
// store, /keelson/fence/NAMESPACE/LEASE, whose revision is the epoch. Each fenced
// write names the revision and is committed in one transaction with the comparison
// (store.Write.Fence): in the store where the object lies, with that store's own
// key.
//
// # Taking
//
// Take, which a leader calls after it has acquired the Lease and before its work:
//
//  1. reads the key's revision in both stores, linearizably;
//  2. after that reads the Lease, linearizably, and refuses unless it is still the
//     caller's acquisition: the same object (uid), the same holder, the same
//     leaseTransitions. Renewals do not matter;
//  3. writes the key in both stores, each on the condition of the revision read in
//     step 1. A conflict repeats everything from step 1.
//
// The two new revisions are the token.
//
// # Why an old leader can never take after a newer one
//
// Acquisitions of a Lease follow each other: acquiring writes on the condition of
// the Lease's revision, raises leaseTransitions where the holder changes, and a
// Lease that was deleted comes back with another uid. So once the Lease shows the
// acquisition of B, it never again shows that of A, which was before.
//
// Let B have taken: in each store there is its step 3, and before that its step 2
// saw B's acquisition. Suppose that a step 3 of A is carried out in one of the
// stores after B's there, were it months late. Its condition holds only if A's step
// 1 saw B's revision or a later one, as revisions never return. Then A's step 1 came
// after B's step 3, so A's step 2 came after B's step 2, and being linearizable saw
// B's acquisition or a later one: A was refused, and there is no such step 3. This
// holds for any process that answers any of the calls, for calls that are repeated
// or late, and for each store alone, so it does not matter that the two are not
// written at once: while only one is, B has no token and does nothing yet, A's writes
// to one store are refused already and those to the other still belong to an epoch
// that has not ended.
//
// # Failures
//
//   - Outcome of step 3 unknown, or the answer lost: the caller takes anew. The
//     epoch that may have begun is nobody's.
//   - Only one store was written: as before, taking again ends it.
//   - A store without a majority: there is no token and no new leader, and nothing
//     can be written there either.
//   - A store that was emptied or put back to an earlier state: revisions are
//     compared for equality, so present tokens are refused, or the epoch of that
//     time is the present one again until the leader takes anew. Whoever puts a store
//     back has to raise its revision beyond all that were given out, as watches need
//     it too; otherwise a token could fit a later epoch.
//
// Renewing the Lease is not fenced: it is conditional on the Lease's own revision,
// so a late one loses to whoever acquired it.
//
// A key is never deleted, so that no token comes to life again: their number is
// bounded instead. It must never tell anybody that a token was accepted: only the
// transaction of a write decides.
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
	prefix = "/keelson/fence/"
	// maxKeys bounds the Leases that were ever fenced.
	maxKeys = 4096
	// maxTries bounds how often taking begins anew because another took meanwhile.
	maxTries = 16
	// maxToken is longer than any token.
	maxToken = 1024
)

var leases = coordinationv1.SchemeGroupVersion.WithResource("leases")

// Authorizer decides on requests: the pipeline.
type Authorizer interface {
	Authorize(ctx context.Context, verb string, t pipeline.Target) error
}

// Fences are the epochs of a cluster.
type Fences struct {
	rights             Authorizer
	lease              *resource.Kind
	lasting, transient store.Store
}

// New makes the fences of the two stores, which may be one.
func New(rights Authorizer, table *resource.Table, lasting, transient store.Store) *Fences {
	return &Fences{rights: rights, lease: table.ByResource(leases), lasting: lasting, transient: transient}
}

// Acquisition is what the holder of a Lease counts on.
type Acquisition struct {
	Namespace, Name, UID, Holder string
	Transitions                  int32
}

func (a *Acquisition) check() error {
	for _, s := range []string{a.Namespace, a.Name, a.UID, a.Holder} {
		if s == "" {
			return apierrors.NewBadRequest("an acquisition has the namespace, name and uid of a Lease, and its holder")
		}
	}
	if strings.Contains(a.Namespace+a.Name, "/") {
		return apierrors.NewBadRequest("names hold no slashes")
	}
	if a.Namespace == corev1.NamespaceNodeLease {
		return apierrors.NewBadRequest("the Lease of a node elects nobody")
	}
	return nil
}

// Take begins the epoch of an acquisition and returns its token. Its errors are
// *apierrors.StatusError, but for those of a context that ended.
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
		// Whatever it was, it may be tried again.
		return "", apierrors.NewServiceUnavailable(err.Error() + ", please try again")
	}
	return "", pipeline.Fenced(leases.GroupResource(), a.Name, "its fence was taken again and again")
}

// take is one round; a conflict asks for another.
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
		if errors.Is(err, store.ErrNotFound) { // the key was there in step 1: the store was put back
			err = store.ErrConflict
		}
		if err != nil {
			return "", fmt.Errorf("fence of lease %s/%s: %w", a.Namespace, a.Name, err)
		}
		revisions[i] = verdicts[0].Revision
	}
	return format(request.Fence{Key: key, Lasting: int64(revisions[0]), Transient: int64(revisions[len(revisions)-1])}), nil
}

// room refuses what would be one key too many.
func (f *Fences) room(ctx context.Context, s store.Store) error {
	page, err := s.List(ctx, prefix, store.ListOptions{Limit: 1})
	if err != nil {
		return err
	}
	if page.Count >= maxKeys {
		return apierrors.NewTooManyRequests(fmt.Sprintf("%d Leases are fenced, which is as many as there may be", page.Count), 60)
	}
	return nil
}

// holds refuses unless the Lease is the caller's, now.
func (f *Fences) holds(ctx context.Context, a *Acquisition) error {
	entry, _, err := f.transient.Get(ctx, f.lease.Key(a.Namespace, a.Name))
	if errors.Is(err, store.ErrNotFound) {
		return pipeline.Fenced(leases.GroupResource(), a.Name, "the Lease is gone")
	}
	if err != nil {
		return err
	}
	item, err := watchcache.Decode(f.lease, entry)
	if err != nil {
		return err
	}
	l, ok := item.Object.(*coordinationv1.Lease)
	if !ok {
		return fmt.Errorf("lease %s/%s is a %T", a.Namespace, a.Name, item.Object)
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

// format writes a token: NAMESPACE/LEASE and two revisions.
func format(f request.Fence) string {
	return fmt.Sprintf("%s %d %d", strings.TrimPrefix(f.Key, prefix), f.Lasting, f.Transient)
}

// Parse reads a token. The error is a BadRequest.
func Parse(token string) (request.Fence, error) {
	parts := strings.Split(token, " ")
	if len(token) > maxToken || len(parts) != 3 || parts[0] == "" {
		return request.Fence{}, apierrors.NewBadRequest("the token of the fence is none")
	}
	out := request.Fence{Key: prefix + parts[0]}
	var err error
	for i, to := range []*int64{&out.Lasting, &out.Transient} {
		// Revision 0 would hold where nobody has taken yet.
		if *to, err = strconv.ParseInt(parts[i+1], 10, 64); err != nil || *to <= 0 {
			return request.Fence{}, apierrors.NewBadRequest("the token of the fence is none")
		}
	}
	return out, nil
}
