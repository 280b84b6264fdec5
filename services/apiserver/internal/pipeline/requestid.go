package pipeline

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// A write with a request id can be repeated by a client that got no answer. No server remembers
// requests: the id of the write, which is part of the stored object, contains the key of the
// request that created the object and that of the last request with an id that changed it. A write
// without a request id keeps both and adds nothing, so that it costs what it did before.
//
// A repetition finds one of four states: the first attempt was not performed (it is performed
// now); it was, and the object still has its key (it answers with the object); a later request with
// an id has replaced the key of an update (it is performed like any other write: a resourceVersion
// makes it a conflict); or the object is gone (a create makes it again, a delete answers gone).
//
// Invariants:
//
//   - Two attempts of one create never make two objects while the first exists, also if they run
//     at the same time on different servers: they compete for the same names, and the store lets
//     one of them have it. A generated name depends on the request alone. A further name is tried
//     only if another's object has the one before, and before any is tried, the present state is
//     searched for an object that the request made under any of them.
//   - A repetition shows a user who may not get the object nothing that the first write did not.

// longestRequestID is the maximum length of a request id.
const longestRequestID = 64

// checkRequestID checks the request id of a write.
func checkRequestID(o WriteOptions) error {
	if len(o.RequestID) > longestRequestID {
		return apierrors.NewBadRequest("the request id has more than 64 characters")
	}
	for i := range len(o.RequestID) {
		if o.RequestID[i] < ' ' || o.RequestID[i] > '~' {
			return apierrors.NewBadRequest("the request id must consist of printable ASCII characters")
		}
	}
	return nil
}

// errRequestID refuses a request id where it cannot be honoured.
func errRequestID(what string) error {
	return apierrors.NewBadRequest("a request id is not supported for " + what)
}

// requestKey returns the key under which a write's request is recorded, or "" if it has no id.
func requestKey(ctx context.Context, verb string, t Target, o WriteOptions) string {
	if o.RequestID == "" || o.DryRun {
		return ""
	}
	user := request.UserFrom(ctx)
	var b []byte
	for _, s := range [...]string{
		user.Name, user.UID, verb, t.Resource.Group, t.Resource.Resource, t.Subresource, t.Namespace, t.Name, o.RequestID,
	} {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	sum := sha256.Sum256(b)
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

// requests is what the id of a write says about requests with ids.
type requests struct {
	// created and last are the keys of the request that created the object and of the last one
	// that changed it. Either may be empty.
	created, last string
	// own is true if the write is that of last or, if last is empty, of created.
	own bool
}

// Separators in the id of a write. Neither is part of a key, nor of what precedes it.
const (
	requestSeparator = "~"
	requestOwn       = "!"
)

// requestsOf returns the requests in the id of a write.
func requestsOf(writeID string) (r requests) {
	_, rest, ok := strings.Cut(writeID, requestSeparator)
	if !ok {
		return r
	}
	r.created, rest, _ = strings.Cut(rest, requestSeparator)
	r.last, r.own = strings.CutSuffix(rest, requestOwn)
	return r
}

// appendTo returns the id of a write with the requests.
func (r requests) appendTo(id string) string {
	if r.created == "" && r.last == "" {
		return id
	}
	id += requestSeparator + r.created + requestSeparator + r.last
	if r.own {
		id += requestOwn
	}
	return id
}

func (r requests) contain(key string) bool { return r.created == key || r.last == key }

// isOwn reports whether the write is that of the request with this key.
func (r requests) isOwn(key string) bool {
	return r.own && (r.last == key || r.last == "" && r.created == key)
}

// writeID returns the id of the write of a step.
func (p *Pipeline) writeID(c *change, s *step) string {
	var r requests
	if c.cur != nil && !s.created {
		r = requestsOf(c.cur.WriteID)
		r.own = false
	}
	switch {
	case c.request == "":
	case s.created:
		r.created, r.own = c.request, true
	default:
		r.last, r.own = c.request, true
	}
	return r.appendTo(p.ids.next())
}

// performed reports whether the item is, or comes from, what an earlier attempt of the change
// wrote.
func (c *change) performed(item *watchcache.Item) bool {
	return c.request != "" && item != nil && requestsOf(item.WriteID).contain(c.request)
}

// answered returns the answer of a change that an earlier attempt has performed.
func (p *Pipeline) answered(c *change, item *watchcache.Item) (*Outcome, error) {
	r := requestsOf(item.WriteID)
	if !r.isOwn(c.request) {
		t := c.target
		t.Name = item.Object().GetName()
		if p.Authorize(c.ctx, "get", t) != nil {
			var err error
			if item, err = known(item); err != nil {
				return nil, err
			}
		}
	}
	out := &Outcome{Item: item, Created: r.created == c.request}
	if c.answer != nil {
		c.answer(out)
	}
	return out, nil
}

// known returns the item without everything that a later write may have changed.
func known(item *watchcache.Item) (*watchcache.Item, error) {
	obj := item.Kind.New()
	obj.SetName(item.Object().GetName())
	obj.SetNamespace(item.Object().GetNamespace())
	obj.SetUID(item.Object().GetUID())
	obj.SetCreationTimestamp(item.Object().GetCreationTimestamp())
	raw, err := obj.Marshal()
	if err != nil {
		return nil, err
	}
	return watchcache.NewItem(item.Kind, item.Key, obj, raw), nil
}

// createdBefore returns the object that an earlier attempt of a create made, or nil.
func (p *Pipeline) createdBefore(c *change, obj resource.Object, generated bool) (*watchcache.Item, error) {
	if c.request == "" || !c.creates || c.searched {
		return nil, nil
	}
	c.searched = true
	cache := p.place(c.kind).Cache
	if _, err := cache.Fresh(c.ctx); err != nil {
		return nil, err
	}
	names := []string{obj.GetName()}
	if generated {
		names = names[:0]
		for i := range maxNames {
			names = append(names, requestedName(obj.GetGenerateName(), c.request, i))
		}
	}
	for _, name := range names {
		item, ok := cache.Kind(c.kind).Get(c.kind.Key(obj.GetNamespace(), name))
		if ok && requestsOf(item.WriteID).created == c.request {
			return shown(c.kind, item)
		}
	}
	return nil, nil
}

// requestedName appends to base the suffix that a request tries at its nth attempt.
func requestedName(base, key string, n int) string {
	sum := sha256.Sum256(append([]byte(key), byte(n)))
	v := binary.BigEndian.Uint64(sum[:])
	return suffixed(base, func() int {
		i := int(v % uint64(len(nameLetters))) //nolint:gosec // less than the number of letters
		v /= uint64(len(nameLetters))
		return i
	})
}

// existing returns the object in the way of a create, as the store has it, if an earlier attempt
// made it, or nil.
func (p *Pipeline) existing(c *change, found *store.Entry) (*watchcache.Item, error) {
	if c.request == "" {
		return nil, nil
	}
	if found == nil {
		entry, _, err := p.place(c.kind).Store.Get(c.ctx, c.key)
		if errors.Is(err, store.ErrNotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		found = &entry
	}
	item, err := watchcache.Decode(p.stored(c.kind), *found)
	if err != nil || requestsOf(item.WriteID).created != c.request {
		return nil, nil //nolint:nilerr // an object that cannot be decoded is none of this request
	}
	return shown(c.kind, item)
}

// goneAlready returns the step of a repeated delete whose object is gone. The uid of its
// preconditions names the object.
func (p *Pipeline) goneAlready(c *change, cur *watchcache.Item, o DeleteOptions) (*step, error) {
	if c.request == "" || cur != nil && *o.Preconditions.UID == cur.Object().GetUID() {
		return nil, nil
	}
	if !c.fresh {
		return nil, errStale
	}
	return &step{answered: &Outcome{Gone: true}}, nil
}
