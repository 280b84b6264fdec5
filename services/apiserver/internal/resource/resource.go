// Package resource is the table of kinds: a row for each kind, with everything that the pipeline,
// the fronts, discovery and documentation need to know about it. Adding a kind means adding a row
// and, if it has rules of its own, a file in a kind package.
//
// Rules are pure functions of the objects. Checks that need other objects (whether the namespace
// exists, which priority class applies) belong to admission.
package resource

import (
	"iter"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Object is any object of Kubernetes' API, as its Go type.
type Object interface {
	metav1.Object
	runtime.Object
	Marshal() ([]byte, error)
	MarshalToSizedBuffer([]byte) (int, error)
	Size() int
	Unmarshal([]byte) error
}

// Kind is a row of the table.
type Kind struct {
	GVK schema.GroupVersionKind
	// Resource is the plural and Singular the singular name, in lower case.
	Resource, Singular string
	ShortNames         []string
	Categories         []string
	Namespaced         bool
	// StorePrefix is Kubernetes' own etcd prefix, with a slash at both ends: "/registry/pods/".
	// An object's key is the prefix, for namespaced kinds the namespace and a slash, and the
	// name.
	StorePrefix string
	// ProtoName is the full name of the protobuf message: "k8s.io.api.core.v1.Pod".
	ProtoName string
	// New and NewList return empty objects of the Go types.
	New     func() Object
	NewList func() runtime.Object
	// Rules are the kind's own rules.
	Rules Rules
	// Decoded, if set, completes an object that was read from the store with what
	// Kubernetes shows and its protobuf encoding does not carry.
	Decoded func(obj Object)
	// Fields are the field selectors besides metadata.name and metadata.namespace, by path
	// ("spec.nodeName"). Each function returns the field's value.
	Fields map[string]func(Object) string
	// Columns are the columns of `kubectl get` after Name, and Cells returns a cell for each.
	// Both are nil for the two default columns, Name and Created At.
	Columns []metav1.TableColumnDefinition
	Cells   func(obj Object) []any
	// PickDefault, if set, returns the object whose name is marked with "(default)" in the table
	// of a list, or nil if there is none.
	PickDefault func(objs iter.Seq[Object]) Object
	// Marked, if set, reports whether an object's name is marked with "(default)" in every table.
	Marked func(obj Object) bool
	// NoNameColumn is true if the table has no leading Name column (Event).
	NoNameColumn bool
	// Subresources are the kind's subresources, by name.
	Subresources map[string]*Subresource
	// Transient is true for kinds whose objects change frequently and only matter now. They are
	// in the transient store (package store/raft), which has revisions of its own.
	Transient bool
	// TTLSeconds, if not 0, is how long after its last write an object expires, in seconds.
	TTLSeconds int64
	// NoDeleteCollection is true if the kind has no deletecollection verb (Namespace).
	NoDeleteCollection bool
	// ReturnsDeleted is true if a delete that removes the object returns its last state.
	// Otherwise it returns a Status.
	ReturnsDeleted bool
	// NoGeneration is true if metadata.generation is not maintained. Kubernetes maintains it for
	// kinds with a spec that controllers act on.
	NoGeneration bool
	// Graceful is called for each delete and decides the grace period. If it is nil, or returns
	// graceful false, the object is deleted immediately.
	Graceful func(obj Object, requested *int64) (seconds int64, graceful bool)
	// DefaultPropagation is the propagation policy of a delete that names none. Empty means
	// Background.
	DefaultPropagation metav1.DeletionPropagation
	// Deprecated is the warning that is added to every response of a deprecated version.
	Deprecated string
	// NoPropagationWarning is the warning for deletes that do not name a propagation policy.
	NoPropagationWarning string
	// Action, if set, says what is done with the objects of a virtual kind, which are posted and
	// returned but never stored: it has no StorePrefix, and create is its only verb. Rules.Default
	// and Rules.Validate apply to the posted object.
	Action Action
	// Forward, if not nil, makes a virtual kind another way to post to a subresource.
	Forward *Forward
	// Computed marks a kind whose objects are computed when they are read, and never stored: it has
	// no StorePrefix, and get and list are its only verbs.
	Computed bool
	// Source computes the objects of a computed kind. The row does not set it; the apiserver does
	// when it starts.
	Source Source
	// Claimer, if not nil, takes part in the writes of the kind. The row does not set it; the
	// apiserver does when it starts.
	Claimer Claimer
	// StoredAs, if set, marks a row whose objects are those of another row in another version:
	// the StorePrefix is the same and the encoding is the other row's. Rules and Fields take this
	// row's type.
	StoredAs *Conversion
	// Terminate, if set, records in the object that its deletion has begun. It is called when
	// metadata.deletionTimestamp is first set. The first delete alone never removes an object of
	// a kind with Terminate while Held returns true.
	Terminate func(obj Object)
	// Held, if set, reports whether something besides metadata.finalizers keeps an object that is
	// being deleted, such as a Namespace's spec.finalizers. The write after which it returns
	// false deletes the object.
	Held func(obj Object) bool
}

// Conversion refers a row to the row that its objects are stored as.
type Conversion struct {
	// GVK is that of the other row.
	GVK schema.GroupVersionKind
	// To and From return new objects, which may share parts with their argument.
	To   func(obj Object) Object
	From func(stored Object) Object
}

// GVR returns the kind's group, version and resource.
func (k *Kind) GVR() schema.GroupVersionResource {
	return k.GVK.GroupVersion().WithResource(k.Resource)
}

// Virtual reports whether the kind's objects are only posted or computed, and never stored.
func (k *Kind) Virtual() bool { return k.StorePrefix == "" }

// Verbs returns the verbs of the kind itself, without those of its subresources. Virtual kinds
// have create only, and computed kinds get and list.
func (k *Kind) Verbs() []string {
	switch {
	case k.Computed:
		return readVerbs
	case k.Virtual():
		return virtualVerbs
	case k.NoDeleteCollection:
		return singleVerbs
	}
	return AllVerbs
}

// AllVerbs are the verbs of an ordinary kind. It must not be modified.
var AllVerbs = []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}

var (
	singleVerbs  = []string{"create", "delete", "get", "list", "patch", "update", "watch"}
	virtualVerbs = []string{"create"}
	readVerbs    = []string{"get", "list"}
)

// Key returns the store key of an object.
func (k *Kind) Key(namespace, name string) string {
	if k.Namespaced {
		return k.StorePrefix + namespace + "/" + name
	}
	return k.StorePrefix + name
}

// Prefix returns the store prefix of a namespace's objects, or of all objects if namespace is "".
func (k *Kind) Prefix(namespace string) string {
	if k.Namespaced && namespace != "" {
		return k.StorePrefix + namespace + "/"
	}
	return k.StorePrefix
}

// Rules are the pure rules of a kind or of an updatable subresource. Any of them may be nil. The
// pipeline handles the metadata that all kinds have (names, labels, generation, timestamps,
// finalizers, immutability of the uid and so on).
type Rules struct {
	// Default sets Kubernetes' defaults.
	Default func(obj Object)
	// PrepareCreate clears what a client may not set on create (status).
	PrepareCreate func(obj Object)
	// PrepareUpdate restores from old what this door may not change: the status when the object
	// itself is updated, and everything else when the status subresource is.
	PrepareUpdate func(obj, old Object)
	// Notices returns warnings for the client of a create, also of one that is refused. It is
	// called before PrepareCreate.
	Notices func(obj Object) []string
	// ValidateName replaces the default check of metadata.name (a DNS-1123 subdomain). prefix is
	// true for generateName. It returns the errors.
	ValidateName func(name string, prefix bool) []string
	// Validate checks a new object.
	Validate func(obj Object) field.ErrorList
	// ValidateUpdate checks a change, including immutability. Validate is not called in addition.
	ValidateUpdate func(obj, old Object) field.ErrorList
	// Warnings returns warnings for the client of a successful write. old is nil for a create.
	Warnings func(obj, old Object) []string
	// SpecChanged reports whether metadata.generation must be incremented. If it is nil,
	// everything but metadata and status is compared.
	SpecChanged func(obj, old Object) bool
	// CreateOnUpdate is true if an update may create the object.
	CreateOnUpdate bool
	// NoUnconditionalUpdate is true if an update must contain a resourceVersion.
	NoUnconditionalUpdate bool
}

// Subresource is a subresource of a kind. Exactly one of View, Scale, Change, Removal, Action,
// Connect and Projection is set.
type Subresource struct {
	// GVK is the kind that discovery shows. Empty means the parent's.
	GVK schema.GroupVersionKind
	// Verbs are the verbs that discovery shows.
	Verbs []string
	// New returns an empty object of the kind GVK, if that is not the parent's and objects of it are
	// read or written.
	New func() Object
	// View reads and writes the parent object with other rules: status, approval, finalize,
	// resize.
	View *Rules
	// Resets are the paths ("metadata.labels") that writes through a View ignore, so that their
	// managers do not own them: GetResetFields of Kubernetes' strategies. If both Resets and Owns
	// are nil, a view named status resets spec, and other views reset nothing.
	Resets []string
	// Owns, if not nil, are the only paths whose fields the managers of a View can own. "*" stands
	// for any item of a list: "spec.containers.*.resources".
	Owns []string
	// Scale converts to and from an autoscaling/v1 Scale.
	Scale *Scale
	// Change changes the parent by what is posted, and Removal deletes it.
	Change  *Change
	Removal *Removal
	// Action says what else is done with a posted object.
	Action Action
	// Connect is a stream that a front serves over the tunnel.
	Connect Stream
	// Projection shows a part of each object of the parent, for callers that may not read the
	// rest. It can be listed and watched over gRPC; the REST front does not serve or show it.
	Projection *Projection
}

// Projection is the part of an object that a subresource shows.
type Projection struct {
	// Of returns a new object of the parent's type with the metadata that identifies the object,
	// its resourceVersion, and the part. It may share what it shows with obj.
	Of func(obj Object) Object
	// Same reports whether the parts of two states of an object are equal. A watch does not
	// report a change that leaves the part as it was.
	Same func(a, b Object) bool
}

// Posted reports whether objects are posted to the subresource.
func (s *Subresource) Posted() bool {
	return s.Change != nil || s.Removal != nil || s.Action != NoAction
}

// Stream names a stream.
type Stream string

// The streams.
const (
	Log         Stream = "log"
	Exec        Stream = "exec"
	Attach      Stream = "attach"
	PortForward Stream = "portforward"
	Proxy       Stream = "proxy"
)

// Scale converts a kind to and from its scale.
type Scale struct {
	// Get returns spec.replicas, status.replicas and the selector as a string.
	Get func(obj Object) (spec, status int32, selector string)
	// Set sets spec.replicas.
	Set func(obj Object, replicas int32)
}

// adapt1 and adapt2 convert typed functions to the untyped ones of Rules.
func adapt1[T Object](f func(T)) func(Object) {
	if f == nil {
		return nil
	}
	return func(o Object) { f(o.(T)) }
}

func adapt2[T Object](f func(T, T)) func(Object, Object) {
	if f == nil {
		return nil
	}
	return func(a, b Object) { f(a.(T), b.(T)) }
}

// Typed is Rules for a specific Go type.
type Typed[T Object] struct {
	Default               func(obj T)
	PrepareCreate         func(obj T)
	PrepareUpdate         func(obj, old T)
	ValidateName          func(name string, prefix bool) []string
	Validate              func(obj T) field.ErrorList
	ValidateUpdate        func(obj, old T) field.ErrorList
	Notices               func(obj T) []string
	Warnings              func(obj, old T) []string
	SpecChanged           func(obj, old T) bool
	CreateOnUpdate        bool
	NoUnconditionalUpdate bool
}

// Rules returns the untyped form.
func (t Typed[T]) Rules() Rules {
	r := Rules{
		Default:               adapt1(t.Default),
		PrepareCreate:         adapt1(t.PrepareCreate),
		PrepareUpdate:         adapt2(t.PrepareUpdate),
		ValidateName:          t.ValidateName,
		CreateOnUpdate:        t.CreateOnUpdate,
		NoUnconditionalUpdate: t.NoUnconditionalUpdate,
	}
	if f := t.Validate; f != nil {
		r.Validate = func(o Object) field.ErrorList { return f(o.(T)) }
	}
	if f := t.ValidateUpdate; f != nil {
		r.ValidateUpdate = func(o, old Object) field.ErrorList { return f(o.(T), old.(T)) }
	}
	if f := t.Notices; f != nil {
		r.Notices = func(o Object) []string { return f(o.(T)) }
	}
	if f := t.Warnings; f != nil {
		r.Warnings = func(o, old Object) []string {
			before, _ := old.(T)
			return f(o.(T), before)
		}
	}
	if f := t.SpecChanged; f != nil {
		r.SpecChanged = func(o, old Object) bool { return f(o.(T), old.(T)) }
	}
	return r
}

// Table is the set of all kinds.
type Table struct {
	kinds []*Kind
	byGVR map[schema.GroupVersionResource]*Kind
	byGVK map[schema.GroupVersionKind]*Kind
	// bodies are the constructors of the kinds without a row that subresources read or write.
	bodies map[schema.GroupVersionKind]func() Object
	posted map[schema.GroupVersionKind]bool
}

// NewTable returns a table. It panics if two rows have the same resource.
func NewTable(kinds ...*Kind) *Table {
	t := &Table{
		byGVR:  make(map[schema.GroupVersionResource]*Kind, len(kinds)),
		byGVK:  make(map[schema.GroupVersionKind]*Kind, len(kinds)),
		bodies: map[schema.GroupVersionKind]func() Object{},
		posted: map[schema.GroupVersionKind]bool{},
	}
	for _, k := range kinds {
		if t.byGVR[k.GVR()] != nil {
			panic("resource: two rows for " + k.GVR().String())
		}
		t.kinds = append(t.kinds, k)
		t.byGVR[k.GVR()] = k
		t.byGVK[k.GVK] = k
		for _, s := range k.Subresources {
			if s.New == nil {
				continue
			}
			t.bodies[s.GVK] = s.New
			if s.Posted() {
				t.posted[s.GVK] = true
			}
		}
	}
	return t
}

// Kinds returns the rows in the order in which they were given.
func (t *Table) Kinds() []*Kind { return t.kinds }

// ByResource returns the row of a resource, or nil.
func (t *Table) ByResource(gvr schema.GroupVersionResource) *Kind { return t.byGVR[gvr] }

// ByKind returns the row of a kind, or nil.
func (t *Table) ByKind(gvk schema.GroupVersionKind) *Kind { return t.byGVK[gvk] }

// Bodies returns the constructors of the kinds without a row of their own that subresources read or
// write, such as Scale. The map must not be changed.
func (t *Table) Bodies() map[schema.GroupVersionKind]func() Object { return t.bodies }

// Posted reports whether objects of a kind are posted to subresources.
func (t *Table) Posted(gvk schema.GroupVersionKind) bool { return t.posted[gvk] }
