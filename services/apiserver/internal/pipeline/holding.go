package pipeline

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/services/apiserver/internal/request"
)

// Watches and streams, which outlive a request, are authorized again after every change of rules,
// and every recheck in addition, because rights also end with what they depend on: a pod of a
// node, a service account, a bootstrap token. At least recheckPause, and recheckShare times the
// duration of the shorter of the last two rounds, passes between two rounds, so that they take
// about a twentieth of the time at most. The longer does not count: if the process was stalled
// for seconds in one round, the next must not wait for a minute.
const (
	recheck      = 30 * time.Second
	recheckPause = 100 * time.Millisecond
	recheckShare = 20
)

// holder is an open watch or stream.
type holder struct {
	user request.User
	// again authorizes it again. Its context is that of the round, with the user.
	again func(ctx context.Context) error
	end   func()
}

// holding is the set of all open watches and streams.
type holding struct {
	mu  sync.Mutex
	all map[*holder]struct{}
}

func (h *holding) add(e *holder) (release func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all == nil {
		h.all = make(map[*holder]struct{})
	}
	h.all[e] = struct{}{}
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.all, e)
	}
}

func (h *holding) snapshot() []*holder {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := make([]*holder, 0, len(h.all))
	for e := range h.all {
		list = append(list, e)
	}
	return list
}

// hold adds a holder that was just authorized, and authorizes it again: a round for a change of
// rules in between would have missed it.
func (p *Pipeline) hold(ctx context.Context, e *holder) (release func()) {
	release = p.holding.add(e)
	if !impersonable(ctx, e) || apierrors.IsForbidden(e.again(ctx)) {
		e.end()
	}
	return release
}

// Hold returns a context that ends when the caller loses the right to one of the verbs on the
// target, when its credential is withdrawn, or when an impersonator loses the right to act as the
// caller. The mere expiry of a credential does not end it, because Kubernetes lets such streams
// continue. release must be called.
func (p *Pipeline) Hold(ctx context.Context, t Target, verbs ...string) (_ context.Context, release func()) {
	ctx, cancel := context.WithCancel(ctx)
	forget := p.hold(ctx, &holder{
		user: request.UserFrom(ctx),
		again: func(ctx context.Context) error {
			for _, verb := range verbs {
				if err := p.Authorize(ctx, verb, t); err != nil {
					return err
				}
			}
			return nil
		},
		end: cancel,
	})
	return ctx, func() { forget(); cancel() }
}

// Recheck ends watches and streams whose callers have lost their rights. It returns when ctx
// ends.
func (p *Pipeline) Recheck(ctx context.Context) error {
	every := time.NewTicker(p.cfg.RecheckEvery)
	defer every.Stop()
	pause := time.NewTimer(0)
	defer pause.Stop()
	var last time.Duration
	for {
		select {
		case <-pause.C: // bounds the rate of rounds
		case <-ctx.Done():
			return nil
		}
		var changed <-chan struct{}
		if p.cfg.RulesChanged != nil {
			changed = p.cfg.RulesChanged()
		}
		began := time.Now()
		p.recheckAll(ctx)
		took := time.Since(began)
		pause.Reset(max(recheckPause, recheckShare*min(took, last)))
		last = took
		select {
		case <-changed:
		case <-every.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (p *Pipeline) recheckAll(ctx context.Context) {
	for _, e := range p.holding.snapshot() {
		if ctx.Err() != nil {
			return
		}
		if !p.stillMay(request.WithUser(ctx, e.user), e) {
			e.end()
		}
	}
}

// impersonable reports whether the impersonator of the holder's user, if any, still has the
// right.
func impersonable(ctx context.Context, e *holder) bool {
	i := e.user.Impersonation
	return i == nil || i.Valid(ctx)
}

// stillMay reports whether the holder may continue. A check that cannot be made ends nothing.
func (p *Pipeline) stillMay(ctx context.Context, e *holder) bool {
	expires := e.user.Expires
	if c := e.user.Credential; c != nil && (expires.IsZero() || p.cfg.Now().Before(expires)) && !c.Valid(ctx) {
		return false
	}
	return impersonable(ctx, e) && !apierrors.IsForbidden(e.again(ctx))
}

// errWatchOver ends a watch normally: a client that still has the right may start it again.
var errWatchOver = io.EOF

// hold ends the watch when the credential expires or the right to it is lost.
func (w *watch) hold(ctx context.Context, again func(context.Context) error) {
	user := request.UserFrom(ctx)
	w.release = w.p.hold(ctx, &holder{user: user, again: again, end: w.end})
	if !user.Expires.IsZero() {
		w.expiry = time.AfterFunc(user.Expires.Sub(w.p.cfg.Now()), w.end)
	}
}

// end makes Next return errWatchOver, even if events are queued. It may be called from any
// goroutine.
func (w *watch) end() {
	w.over.Store(true)
	w.Watcher.Close()
}

// IsWatchOver reports whether err is the normal end of a watch, after which a client that still
// has the right may start it again at once.
func IsWatchOver(err error) bool { return errors.Is(err, errWatchOver) }
