// Package pipeline is the only path to the state: authorize, decode, mutate, validate, store,
// respond. It contains the semantics that all kinds share. Those of a single kind are in its row
// (package resource), and checks that need other objects are in package admission.
//
// It must never know about a transport, respond before the store has acknowledged a write, modify
// an object from the watch cache, or let the panic of one request end the process.
package pipeline

import (
	"context"
	"log/slog"
	"time"

	"keelson.dev/services/apiserver/internal/admission"
	"keelson.dev/services/apiserver/internal/fieldmanager"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// Authorizer decides whether a request is allowed.
type Authorizer interface {
	// Authorize reports whether the request is allowed. If it is not, reason says why; it may be
	// empty.
	Authorize(ctx context.Context, a *request.Attributes) (allowed bool, reason string, err error)
}

// Place is where the objects of a kind are stored: a store, and the watch cache over it. Each
// place has its own revisions, which are only comparable within a kind.
type Place struct {
	Store store.Store
	Cache *watchcache.Cache
}

// Config configures a Pipeline. Table and Lasting are required.
type Config struct {
	Table *resource.Table
	// Lasting is the place of most kinds, and Transient that of the kinds marked as transient. If
	// Transient is not set, they are in Lasting.
	Lasting, Transient Place
	Authorizer         Authorizer
	Admission          *admission.Chain
	// Fields maintains metadata.managedFields. If it is nil, there are none and apply is refused.
	Fields *fieldmanager.Fields
	// Actions are what is done with posted objects. A post for which there is none is refused.
	Actions map[resource.Action]Action
	// RulesChanged returns a channel that is closed at the next change of the authorizer's rules;
	// it may be nil. RecheckEvery is how often Recheck checks everything in addition; 0 means 30
	// s.
	RulesChanged func() <-chan struct{}
	RecheckEvery time.Duration
	Now          func() time.Time
	Log          *slog.Logger
}

// Action processes what was posted to a subresource (t names the parent object) or to a virtual
// kind.
type Action func(ctx context.Context, t Target, obj resource.Object, o WriteOptions) (*Outcome, error)

// Pipeline implements API.
type Pipeline struct {
	cfg     Config
	ids     *writeIDs
	holding holding
	turns   *turns
}

var _ API = (*Pipeline)(nil)

// New returns a pipeline.
func New(cfg Config) *Pipeline {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.RecheckEvery == 0 {
		cfg.RecheckEvery = recheck
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Transient.Store == nil {
		cfg.Transient = cfg.Lasting
	}
	return &Pipeline{cfg: cfg, ids: newWriteIDs(), turns: newTurns()}
}

// place returns where the objects of a kind are stored.
func (p *Pipeline) place(k *resource.Kind) *Place {
	if k.Transient {
		return &p.cfg.Transient
	}
	return &p.cfg.Lasting
}

// Table returns the table of kinds.
func (p *Pipeline) Table() *resource.Table { return p.cfg.Table }

// kind returns the row and, if the target names one, the subresource.
func (p *Pipeline) kind(t Target) (*resource.Kind, *resource.Subresource, error) {
	k := p.cfg.Table.ByResource(t.Resource)
	if k == nil {
		return nil, nil, p.errNoResource(t)
	}
	if t.Subresource == "" {
		return k, nil, nil
	}
	s, ok := k.Subresources[t.Subresource]
	if !ok {
		return nil, nil, errNoSubresource(k, t)
	}
	return k, s, nil
}

// stored returns the row that objects of k are stored as.
func (p *Pipeline) stored(k *resource.Kind) *resource.Kind {
	if k.StoredAs == nil {
		return k
	}
	return p.cfg.Table.ByKind(k.StoredAs.GVK)
}

// shown converts an item to the kind of the request.
func shown(k *resource.Kind, item *watchcache.Item) (*watchcache.Item, error) {
	if item == nil || k.StoredAs == nil {
		return item, nil
	}
	obj := k.StoredAs.From(item.Object())
	raw, err := obj.Marshal()
	if err != nil {
		return nil, err
	}
	return item.As(k, obj, raw), nil
}
