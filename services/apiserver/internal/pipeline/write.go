package pipeline

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/admission"
	"keelson.dev/services/apiserver/internal/envelope"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/watchcache"
)

const (
	// maxTries bounds how often a write is planned again because the object has changed.
	maxTries = 20
	// eagerTries is the number of tries without a pause before them.
	eagerTries = 4
	// maxNames is how many generated names are tried, as in Kubernetes.
	maxNames = 8
	// maxObject bounds the size of an encoded object in bytes, as etcd's request limit does for
	// Kubernetes.
	maxObject = 1536 << 10
)

// change is a write in progress. plan decides what to store, given the current state. It runs
// again if that state changes before the write reaches the store.
type change struct {
	ctx     context.Context
	target  Target
	kind    *resource.Kind
	rules   *resource.Rules // of the door: the kind's or the subresource's
	opts    WriteOptions
	user    request.User
	creates bool // planned without reading the current state
	// shares allows the watch cache to take over the object instead of decoding it from the
	// store. The object must be exactly as decoding would make it, without empty lists.
	shares bool
	plan   func(cur *watchcache.Item) (*step, error)
	// request is the key of a write with a request id, or empty. answer modifies the Outcome of a
	// repetition, if it is not nil.
	request string
	answer  func(*Outcome)

	key   string
	cur   *watchcache.Item
	known bool // cur has been read
	fresh bool // cur is at least as new as the request
	tries int
	names int
	// searched is true if an earlier attempt of the create has been looked for.
	searched bool
	warn     []string
	// charged is what this change has charged to quotas, by their names, and chargedAt the time of
	// the first charge. budgeted is true once a budget was charged.
	charged   map[string]corev1.ResourceList
	chargedAt time.Time
	budgeted  bool
	// period is the accounting period of the charges, and lost is true once charges were lost
	// with the end of a period.
	period *store.Fence
	lost   bool

	step *step
	out  *Outcome
	err  error
	done bool
}

// step is the result of a plan.
type step struct {
	// obj is the new state, or nil for a delete.
	obj resource.Object
	// expect is the revision that the write depends on.
	expect store.Revision
	// created and gone are those of the Outcome.
	created, gone bool
	// last is the object's last state if an update became a delete.
	last resource.Object
	// onlyTimes is true if the managed fields differ only in their timestamps. If nothing else
	// differs, nothing is written.
	onlyTimes bool
	// keepTrace keeps the trace context of the last write if this one has none.
	keepTrace bool
	// more means that the change continues from the state that this step wrote.
	more bool
	// answered is the result of a write that an earlier attempt has performed, or nil.
	answered *Outcome
	// answer modifies the Outcome, if it is not nil.
	answer func(*Outcome)
	// finish is called once and told whether the write succeeded.
	finish []func(ok bool)

	value   []byte
	id      string
	trace   string
	written *watchcache.Written
}

// settled calls the step's finish functions.
func (s *step) settled(ok bool) {
	for _, f := range s.finish {
		f(ok)
	}
	s.finish = nil
}

func (c *change) gr() schema.GroupResource { return c.target.Resource.GroupResource() }

func (c *change) end(out *Outcome, err error) {
	c.out, c.err, c.done = out, err, true
	if out != nil {
		out.Warnings = append(out.Warnings, c.warn...)
	} else {
		c.out = warned(c.warn)
	}
}

// warned returns the Outcome of a refusal: its warnings, or nil if there are none.
func warned(warnings []string) *Outcome {
	if len(warnings) == 0 {
		return nil
	}
	return &Outcome{Warnings: warnings}
}

// fail ends the change with an error. It rolls back the current step, if there is one.
func (p *Pipeline) fail(c *change, err error) {
	if c.step != nil {
		c.step.settled(false)
		c.step = nil
	}
	c.end(nil, p.statusOf(c.ctx, c.gr(), c.target.Name, err))
}

// batch is the writes to one place, and the changes that they belong to.
type batch struct {
	writes []store.Write
	owners []*change
	// fence is what all writes of the request depend on, or nil.
	fence *store.Fence
}

// run executes changes together. Every change ends with out or err.
func (p *Pipeline) run(ctx context.Context, changes ...*change) {
	var lasting, transient batch
	if f := request.FenceFrom(ctx); f != nil {
		lasting.fence = &store.Fence{Key: f.Key, ModRevision: store.Revision(f.Lasting)}
		transient.fence = &store.Fence{Key: f.Key, ModRevision: store.Revision(f.Transient)}
	}
	for {
		lasting.reset()
		transient.reset()
		var charged time.Time // the first charge of a write that is prepared
		for _, c := range changes {
			if c.done {
				continue
			}
			if !charged.IsZero() && p.cfg.Now().Sub(charged) > maxChargeTime {
				break // write these first, and prepare the others in the next round
			}
			b := &lasting
			if c.kind.Transient {
				b = &transient
			}
			if w, ok := p.prepare(c); ok {
				w.Fence = b.fence
				if c.owes() {
					w.Period = c.period
				}
				b.writes = append(b.writes, w)
				b.owners = append(b.owners, c)
				if charged.IsZero() && len(c.charged) > 0 {
					charged = c.chargedAt
				}
			}
		}
		if len(lasting.writes)+len(transient.writes) == 0 {
			return
		}
		p.commit(ctx, p.cfg.Transient.Store, &transient)
		p.commit(ctx, p.cfg.Lasting.Store, &lasting)
	}
}

func (b *batch) reset() { b.writes, b.owners = b.writes[:0], b.owners[:0] }

// commit commits a batch and settles its changes.
func (p *Pipeline) commit(ctx context.Context, st store.Store, b *batch) {
	if len(b.writes) == 0 {
		return
	}
	verdicts, err := st.Commit(ctx, b.writes)
	for i, c := range b.owners {
		v := store.Verdict{Err: err}
		if err == nil {
			v = verdicts[i]
		}
		p.settle(c, v)
	}
}

// prepare plans a change until there is something to store or the change has ended.
func (p *Pipeline) prepare(c *change) (w store.Write, ok bool) {
	defer func() {
		if r := recover(); r != nil {
			p.cfg.Log.ErrorContext(c.ctx, "panic in a request", "panic", fmt.Sprint(r), "stack", string(debug.Stack()),
				"resource", c.gr().String(), "namespace", c.target.Namespace, "name", c.target.Name)
			p.fail(c, apierrors.NewInternalError(errors.New("the request could not be processed")))
			w, ok = store.Write{}, false
		}
	}()
	for {
		if err := c.ctx.Err(); err != nil {
			p.fail(c, err)
			return w, false
		}
		c.tries++
		if c.tries > maxTries {
			p.fail(c, apierrors.NewConflict(c.gr(), c.target.Name, errors.New(optimisticLock)))
			return w, false
		}
		if c.tries > eagerTries {
			stepAside(c.ctx, c.tries)
		}
		if err := p.load(c); err != nil {
			p.fail(c, err)
			return w, false
		}
		if c.performed(c.cur) {
			out, err := p.answered(c, c.cur)
			c.end(out, err)
			return w, false
		}
		s, err := c.plan(c.cur)
		if err == nil {
			c.step = s
			w, ok, err = p.stage(c, s)
			if ok || c.done {
				return w, ok
			}
		}
		if s != nil {
			s.settled(false)
		}
		c.step = nil
		if !c.creates && !c.fresh { // the state may have been old: read it again
			c.known = false
			c.warn = nil
			continue
		}
		p.fail(c, err)
		return w, false
	}
}

// stepAside waits for a random time of less than one millisecond per try, so that among many
// writers of an object none loses repeatedly.
func stepAside(ctx context.Context, tries int) {
	t := time.NewTimer(rand.N(time.Duration(tries) * time.Millisecond))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// load reads the current state. The first try reads from the cache.
func (p *Pipeline) load(c *change) error {
	if c.creates || c.known {
		return nil
	}
	c.known = true
	if c.tries == 1 && !c.opts.DryRun {
		c.cur, _ = p.place(c.kind).Cache.Kind(c.kind).Get(c.key)
		c.fresh = false
		if c.cur != nil {
			return p.show(c)
		}
	}
	c.fresh = true
	entry, _, err := p.place(c.kind).Store.Get(c.ctx, c.key)
	if errors.Is(err, store.ErrNotFound) {
		c.cur = nil
		return nil
	}
	if err != nil {
		return err
	}
	return p.found(c, entry)
}

func (p *Pipeline) found(c *change, entry store.Entry) error {
	item, err := watchcache.Decode(p.stored(c.kind), entry)
	if err != nil {
		return err
	}
	c.cur, c.known, c.fresh = item, true, true
	return p.show(c)
}

func (p *Pipeline) show(c *change) (err error) {
	c.cur, err = shown(c.kind, c.cur)
	return err
}

// errStale requests that the current state be read again.
var errStale = errors.New("the present state may be out of date")

// stage converts a step to a store write. If there is nothing to write, it ends the change.
func (p *Pipeline) stage(c *change, s *step) (store.Write, bool, error) {
	if s.answered != nil {
		c.end(s.answered, nil)
		return store.Write{}, false, nil
	}
	if s.obj == nil { // a delete
		if c.opts.DryRun {
			s.settled(false)
			p.finish(c, s, c.cur)
			return store.Write{}, false, nil
		}
		return store.Write{Key: c.key, Expect: s.expect}, true, nil
	}
	s.id = p.writeID(c, s)
	p.trace(c, s)
	same, err := p.encode(c, s)
	if err != nil {
		return store.Write{}, false, err
	}
	if same {
		if !c.fresh {
			return store.Write{}, false, errStale
		}
		s.settled(false)
		p.finish(c, s, c.cur)
		return store.Write{}, false, nil
	}
	if len(s.value) > maxObject {
		return store.Write{}, false, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("the encoded object has %d bytes; at most %d are allowed", len(s.value), maxObject))
	}
	if c.opts.DryRun {
		s.settled(false)
		var rev store.Revision
		if c.cur != nil {
			rev = c.cur.Revision
		}
		item, err := p.item(c, s, rev)
		if err != nil {
			return store.Write{}, false, err
		}
		p.finish(c, s, item)
		return store.Write{}, false, nil
	}
	if err := p.announce(c, s); err != nil {
		return store.Write{}, false, err
	}
	id := s.id
	return store.Write{
		Key:        c.key,
		Value:      s.value,
		Expect:     s.expect,
		TTLSeconds: c.kind.TTLSeconds,
		Settled:    func(found []byte) bool { return envelope.WriteID(found) == id },
	}, true, nil
}

// announce lets the watch cache use the object when the write's event arrives.
func (p *Pipeline) announce(c *change, s *step) error {
	if !c.shares || c.kind.StoredAs != nil {
		return nil
	}
	v, err := envelope.Decode(s.value)
	if err != nil {
		return err
	}
	w := &watchcache.Written{Kind: c.kind, Object: s.obj, Raw: v.Raw, Key: c.key, Traceparent: s.trace, WriteID: s.id}
	s.written = w
	cache := p.place(c.kind).Cache
	cache.Announce(w)
	s.finish = append(s.finish, func(ok bool) {
		if !ok {
			cache.Withdraw(w)
		}
	})
	return nil
}

// encode encodes the object, and reports whether the stored bytes are the same.
func (p *Pipeline) encode(c *change, s *step) (same bool, err error) {
	compare := c.cur != nil && !s.created
	if compare && s.onlyTimes {
		fields := s.obj.GetManagedFields()
		s.obj.SetManagedFields(c.cur.Object().GetManagedFields())
		if err := p.encodeValue(c, s); err != nil {
			return false, err
		}
		if same, err := unchanged(c, s); same || err != nil {
			return same, err
		}
		s.obj.SetManagedFields(fields)
		compare = false
	}
	if err := p.encodeValue(c, s); err != nil || !compare {
		return false, err
	}
	return unchanged(c, s)
}

func (p *Pipeline) encodeValue(c *change, s *step) (err error) {
	s.obj.SetResourceVersion("")
	obj, kind := s.obj, c.kind
	defaults := resource.DefaultsVersion
	if kind.StoredAs != nil {
		obj, kind = kind.StoredAs.To(obj), p.stored(kind)
		defaults = 0 // the object has the defaults of its own row, not those of the stored one
	}
	apiVersion, name := kind.GVK.ToAPIVersionAndKind()
	s.value, err = envelope.EncodeObject(envelope.Value{
		APIVersion: apiVersion, Kind: name, Traceparent: s.trace, WriteID: s.id, Defaults: defaults,
	}, obj)
	return err
}

// unchanged reports whether the step would store what is stored already.
func unchanged(c *change, s *step) (bool, error) {
	if c.cur.Completed {
		return false, nil // the stored object lacks defaults that the cached one has
	}
	if c.kind.StoredAs != nil {
		was := c.cur.Object().GetResourceVersion()
		s.obj.SetResourceVersion(was)
		defer s.obj.SetResourceVersion("")
		raw, err := s.obj.Marshal()
		return err == nil && string(raw) == string(c.cur.Raw), err
	}
	v, err := envelope.Decode(s.value)
	if err != nil {
		return false, err
	}
	// The encodings can only differ in the resource version.
	if d := len(c.cur.Raw) - len(v.Raw); d < 1 || d > 24 {
		return false, nil
	}
	raw, err := envelope.WithResourceVersion(v.Raw, int64(c.cur.Revision))
	return err == nil && string(raw) == string(c.cur.Raw), err
}

// settle processes the store's verdict on a change.
func (p *Pipeline) settle(c *change, v store.Verdict) {
	s := c.step
	switch {
	case v.Err == nil:
		s.settled(true)
		item, err := p.item(c, s, v.Revision)
		if err != nil {
			p.fail(c, err)
			return
		}
		if s.more {
			c.step, c.cur, c.known, c.fresh, c.warn = nil, item, true, true, nil
			c.charged = nil // what it paid for is stored
			return
		}
		p.finish(c, s, item)
	case errors.Is(v.Err, store.ErrExists) && c.creates:
		s.settled(false)
		p.exists(c, v)
	case errors.Is(v.Err, store.ErrConflict), errors.Is(v.Err, store.ErrExists), errors.Is(v.Err, store.ErrNotFound):
		s.settled(false)
		c.step, c.known, c.warn = nil, false, nil
		if v.Current != nil {
			if err := p.found(c, *v.Current); err != nil {
				p.fail(c, err)
			}
		}
	case errors.Is(v.Err, store.ErrFenced) && c.owes():
		// The accounting period has ended. If it is the writer's epoch instead, the next charge
		// is refused.
		s.settled(false)
		c.step, c.known, c.warn = nil, false, nil
		c.leavePeriod()
	default:
		// If the outcome is unknown, the write may have happened, so what it claimed is kept.
		s.settled(errors.Is(v.Err, store.ErrUnknownOutcome))
		p.fail(c, v.Err)
	}
}

// item returns the state that a step stored.
func (p *Pipeline) item(c *change, s *step, rev store.Revision) (*watchcache.Item, error) {
	if s.written != nil {
		return s.written.At(rev)
	}
	if s.obj == nil && s.last == nil {
		return c.cur.At(rev), nil
	}
	removed := s.obj == nil
	if removed {
		s.obj = s.last
	}
	var raw []byte
	if removed || c.kind.StoredAs != nil {
		var err error
		s.obj.SetResourceVersion(strconv.FormatInt(int64(rev), 10))
		if raw, err = s.obj.Marshal(); err != nil {
			return nil, err
		}
	} else {
		v, err := envelope.Decode(s.value)
		if err != nil {
			return nil, err
		}
		raw = v.Raw
		if rev != 0 {
			if raw, err = envelope.WithResourceVersion(v.Raw, int64(rev)); err != nil {
				return nil, err
			}
			s.obj.SetResourceVersion(strconv.FormatInt(int64(rev), 10))
		}
	}
	item := watchcache.NewItem(c.kind, c.key, s.obj, raw)
	item.Revision, item.Traceparent, item.WriteID = rev, s.trace, s.id
	return item, nil
}

func (p *Pipeline) finish(c *change, s *step, item *watchcache.Item) {
	out := &Outcome{Item: item, Created: s.created, Gone: s.gone}
	if s.answer != nil {
		s.answer(out)
	}
	if claimer := c.kind.Claimer; claimer != nil && s.gone && !c.opts.DryRun {
		claimer.Released(c.ctx, c.cur.Object())
	}
	c.end(out, nil)
}

// attributes describes the change to admission.
func (c *change) attributes(op admission.Operation, obj, old resource.Object) *admission.Attributes {
	return &admission.Attributes{
		Operation:   op,
		User:        c.user,
		Kind:        c.kind,
		Subresource: c.target.Subresource,
		Namespace:   c.target.Namespace,
		Name:        c.target.Name,
		Object:      obj,
		Old:         old,
		DryRun:      c.opts.DryRun,
		Warn:        func(message string) { c.warn = append(c.warn, message) },
	}
}

// admissionError converts an error of a plugin.
func (c *change) admissionError(obj resource.Object, err error) error {
	name := c.target.Name
	if name == "" && obj != nil {
		name = obj.GetName()
	}
	return refusal(c.gr(), name, err)
}

// refusal returns Forbidden, unless the plugin returned a Status.
func refusal(gr schema.GroupResource, name string, err error) error {
	var status *apierrors.StatusError
	if errors.As(err, &status) {
		return status
	}
	return apierrors.NewForbidden(gr, name, err)
}
