// Package pipeline is the one way to state: authorize, decode, mutate, validate,
// store, reply. It holds all of Kubernetes' semantics that are common to every
// kind; what is a kind's own lies in its row (package resource), what needs other
// objects in package admission.
//
// It must never know a transport, answer before a write is acknowledged by the
// store, change an object that the watch cache handed out, or let one request's
// panic end the process.
package pipeline

import (
	"context"
	"log/slog"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/admission"
	"keelson.dev/services/apiserver/internal/fieldmanager"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// Authorizer decides whether a request may go on.
type Authorizer interface {
	// Authorize returns whether the request is allowed, and if not, why (may be
	// empty).
	Authorize(ctx context.Context, a *request.Attributes) (allowed bool, reason string, err error)
}

// Place is where objects of a kind lie: a store, and the watch cache over it. Each
// has revisions of its own, which are compared within a kind only.
type Place struct {
	Store store.Store
	Cache *watchcache.Cache
}

// Config of a Pipeline. Table and Lasting are required.
type Config struct {
	Table *resource.Table
	// Lasting is the place of most kinds, Transient that of those that say so;
	// without one they lie with the others.
	Lasting, Transient Place
	Authorizer         Authorizer
	Admission          *admission.Chain
	// Fields keeps metadata.managedFields; nil keeps none and refuses apply.
	Fields *fieldmanager.Fields
	Hooks  map[schema.GroupResource]Hook
	// Virtual carries out the virtual kinds, Posts the subresources that are
	// posted to, by their names.
	Virtual map[string]Action
	Posts   map[string]Action
	// RulesChanged returns a channel that is closed when the authorizer's rules change
	// next; nil, if nobody says. RecheckEvery is how often Recheck looks at everything
	// besides; 0 is half a minute.
	RulesChanged func() <-chan struct{}
	RecheckEvery time.Duration
	Now          func() time.Time
	Log          *slog.Logger
}

// Hook takes part in the writes of one resource: it claims what the object needs
// beside itself (a Service its addresses).
type Hook interface {
	// Claim may fill in obj before it is validated; old is nil on create. The
	// returned function is called once with whether the write succeeded.
	Claim(ctx context.Context, obj, old resource.Object, dryRun bool) (finish func(ok bool), err error)
	// Released is called after an object was deleted.
	Released(ctx context.Context, old resource.Object)
}

// Action answers what was posted to a subresource (parent names the object) or
// to a virtual kind.
type Action func(ctx context.Context, t Target, obj resource.Object, o WriteOptions) (*Outcome, error)

// Pipeline implements API.
type Pipeline struct {
	cfg     Config
	ids     *writeIDs
	holding holding
}

var _ API = (*Pipeline)(nil)

// New makes a pipeline.
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
	return &Pipeline{cfg: cfg, ids: newWriteIDs()}
}

// place is where objects of a kind lie.
func (p *Pipeline) place(k *resource.Kind) *Place {
	if k.Transient {
		return &p.cfg.Transient
	}
	return &p.cfg.Lasting
}

// Table is the table of kinds.
func (p *Pipeline) Table() *resource.Table { return p.cfg.Table }

// kind finds the row and, where the target names one, the subresource.
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
	return k, &s, nil
}

// stored is the row that objects of k are stored as.
func (p *Pipeline) stored(k *resource.Kind) *resource.Kind {
	if k.StoredAs == nil {
		return k
	}
	return p.cfg.Table.ByKind(k.StoredAs.GVK)
}

// shown is an item as the kind of the request sees it.
func shown(k *resource.Kind, item *watchcache.Item) (*watchcache.Item, error) {
	if item == nil || k.StoredAs == nil {
		return item, nil
	}
	obj := k.StoredAs.From(item.Object)
	raw, err := obj.Marshal()
	if err != nil {
		return nil, err
	}
	out := *item
	out.Kind, out.Object, out.Raw = k, obj, raw
	return &out, nil
}
