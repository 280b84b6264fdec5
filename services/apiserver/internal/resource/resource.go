// Package resource is the table of kinds: one row each, with all that the
// pipeline, the fronts, discovery and documentation need to know of it. Adding a
// kind is adding a row and, where it has rules of its own, one file in a kind
// package.
//
// Rules are pure: they see objects and nothing else. What needs other objects
// (does the namespace exist? which priority class?) is admission.
package resource

import (
	"iter"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Object is any object of Kubernetes' API in its Go type.
type Object interface {
	metav1.Object
	runtime.Object
	Marshal() ([]byte, error)
	MarshalToSizedBuffer([]byte) (int, error)
	Size() int
	Unmarshal([]byte) error
}

// Kind is one row of the table.
type Kind struct {
	GVK schema.GroupVersionKind
	// Resource is the plural, Singular the singular, lower case.
	Resource, Singular string
	ShortNames         []string
	Categories         []string
	Namespaced         bool
	// StorePrefix is Kubernetes' own etcd prefix, with a slash at both ends:
	// "/registry/pods/". The key is the prefix, the namespace and a slash for
	// namespaced kinds, and the name.
	StorePrefix string
	// ProtoName is the protobuf message, "k8s.io.api.core.v1.Pod".
	ProtoName string
	// New and NewList make empty objects of the Go types.
	New     func() Object
	NewList func() runtime.Object
	// Rules are the kind's own.
	Rules Rules
	// Fields are the field selectors beyond metadata.name and
	// metadata.namespace, by path ("spec.nodeName").
	Fields map[string]func(Object) string
	// Columns of `kubectl get`, after Name; Cells returns one cell for each. Both
	// are nil for the two default columns, Name and Created At.
	Columns []metav1.TableColumnDefinition
	Cells   func(obj Object) []any
	// PickDefault, if set, finds the object whose name the table of a list marks
	// with "(default)"; nil if there is none.
	PickDefault func(objs iter.Seq[Object]) Object
	// NoNameColumn is set where the table has no leading Name column (Event).
	NoNameColumn bool
	// Subresources by name.
	Subresources map[string]Subresource
	// Transient says that objects change every second and matter now: they lie in
	// the store for such (see package store/raft), with revisions of its own.
	Transient bool
	// TTLSeconds, if not 0, is how long after its last write an object expires.
	TTLSeconds int64
	// NoDeleteCollection is set where a collection cannot be deleted (Namespace).
	NoDeleteCollection bool
	// ReturnsDeleted is set where a delete that leaves nothing answers with the
	// object's last state; otherwise the answer is a Status.
	ReturnsDeleted bool
	// NoGeneration is set where metadata.generation is not kept (Kubernetes keeps
	// it for kinds with a spec that controllers act on).
	NoGeneration bool
	// Immediate is called at each delete and decides how graceful it is; nil
	// deletes at once. See Graceful.
	Graceful func(obj Object, requested *int64) (seconds int64, graceful bool)
	// DefaultPropagation is the propagation policy where the client names none;
	// empty is Background.
	DefaultPropagation metav1.DeletionPropagation
	// Deprecated is the warning that comes with every answer of a deprecated
	// version.
	Deprecated string
	// UnsaidPropagation is the warning for those who delete without saying what
	// becomes of dependents.
	UnsaidPropagation string
	// Virtual, if set, marks a kind that is posted, answered and never stored
	// (it has no StorePrefix, the only verb is create). It names the action that
	// the pipeline implements: one of the Virtual… constants. Rules.Default and
	// Rules.Validate apply to what was posted.
	Virtual string
	// StoredAs, if set, says that the objects are those of another row, seen
	// under another version: same StorePrefix, the other row's encoding. Rules
	// and Fields see this row's type.
	StoredAs *Conversion
	// Terminate, if set, records in the object that its deletion has begun; it is
	// called when metadata.deletionTimestamp is first set. A kind with Terminate
	// is never deleted by the first delete alone while Held is true.
	Terminate func(obj Object)
	// Held, if set, tells whether something besides metadata.finalizers keeps an
	// object that is being deleted (a Namespace's spec.finalizers). The write
	// that makes it false deletes the object.
	Held func(obj Object) bool
}

// The actions of virtual kinds.
const (
	VirtualTokenReview              = "tokenreview"
	VirtualSelfSubjectReview        = "selfsubjectreview"
	VirtualSubjectAccessReview      = "subjectaccessreview"
	VirtualSelfSubjectAccessReview  = "selfsubjectaccessreview"
	VirtualSelfSubjectRulesReview   = "selfsubjectrulesreview"
	VirtualLocalSubjectAccessReview = "localsubjectaccessreview"
	// VirtualBinding is the old door v1 bindings: the Binding's own name is the
	// pod's; it does what pods/binding does.
	VirtualBinding = "binding"
)

// Conversion ties a row to the row that its objects are stored as.
type Conversion struct {
	// GVK is the other row.
	GVK schema.GroupVersionKind
	// To and From make new objects; they share what they can with the old.
	To   func(obj Object) Object
	From func(stored Object) Object
}

// GVR is the kind's group, version and resource.
func (k *Kind) GVR() schema.GroupVersionResource {
	return k.GVK.GroupVersion().WithResource(k.Resource)
}

// Verbs are what the kind itself serves; its subresources have their own. Kinds that
// are only posted have create alone.
func (k *Kind) Verbs() []string {
	switch {
	case k.Virtual != "":
		return virtualVerbs
	case k.NoDeleteCollection:
		return singleVerbs
	}
	return AllVerbs
}

// AllVerbs are those of an ordinary kind. Nobody may change it.
var AllVerbs = []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}

var (
	singleVerbs  = []string{"create", "delete", "get", "list", "patch", "update", "watch"}
	virtualVerbs = []string{"create"}
)

// Key is the store key of an object.
func (k *Kind) Key(namespace, name string) string {
	if k.Namespaced {
		return k.StorePrefix + namespace + "/" + name
	}
	return k.StorePrefix + name
}

// Prefix is the store prefix of a namespace's objects, or of all.
func (k *Kind) Prefix(namespace string) string {
	if k.Namespaced && namespace != "" {
		return k.StorePrefix + namespace + "/"
	}
	return k.StorePrefix
}

// Rules are the pure rules of a kind or of an updatable subresource. Any may be
// nil. Metadata common to all kinds (names, labels, generation, timestamps,
// finalizers, immutability of uid and so on) is the pipeline's.
type Rules struct {
	// Default fills in Kubernetes' defaults.
	Default func(obj Object)
	// PrepareCreate clears what a client may not set on create (status).
	PrepareCreate func(obj Object)
	// PrepareUpdate restores from old what this door may not change (status when
	// the object itself is updated; all but status at the status subresource).
	PrepareUpdate func(obj, old Object)
	// ValidateName replaces the default check of metadata.name (a DNS-1123
	// subdomain); prefix is true for generateName.
	ValidateName func(name string, prefix bool) []string
	// Validate checks a new object.
	Validate func(obj Object) field.ErrorList
	// ValidateUpdate checks a change, immutability included; Validate is not
	// called beside it.
	ValidateUpdate func(obj, old Object) field.ErrorList
	// Warnings are returned to the client with a successful write.
	Warnings func(obj, old Object) []string
	// SpecChanged tells whether metadata.generation grows; nil compares all but
	// metadata and status.
	SpecChanged func(obj, old Object) bool
	// CreateOnUpdate allows an update of an object that does not exist.
	CreateOnUpdate bool
	// NoUnconditionalUpdate refuses an update without a resourceVersion.
	NoUnconditionalUpdate bool
}

// Subresource is one subresource of a kind. Exactly one of the forms is used.
type Subresource struct {
	// Kind and GroupVersion that discovery shows for it; empty is the parent's.
	GVK schema.GroupVersionKind
	// Verbs that discovery shows.
	Verbs []string
	// View reads and writes the parent object under other rules: status,
	// approval, finalize, resize.
	View *Rules
	// Scale maps to and from autoscaling/v1 Scale.
	Scale *Scale
	// Post names an action that the pipeline implements: "binding", "eviction",
	// "token".
	Post string
	// Connect names a stream that a front implements over the tunnel: "log",
	// "exec", "attach", "portforward", "proxy".
	Connect string
}

// Scale maps a kind to its scale.
type Scale struct {
	// Get returns spec.replicas, status.replicas and the selector as a string.
	Get func(obj Object) (spec, status int32, selector string)
	// Set changes spec.replicas.
	Set func(obj Object, replicas int32)
}

// adapt1 and adapt2 turn typed functions into the untyped ones of Rules.
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

// Typed are Rules with the kind's own Go type.
type Typed[T Object] struct {
	Default               func(obj T)
	PrepareCreate         func(obj T)
	PrepareUpdate         func(obj, old T)
	ValidateName          func(name string, prefix bool) []string
	Validate              func(obj T) field.ErrorList
	ValidateUpdate        func(obj, old T) field.ErrorList
	Warnings              func(obj, old T) []string
	SpecChanged           func(obj, old T) bool
	CreateOnUpdate        bool
	NoUnconditionalUpdate bool
}

// Rules are the untyped form.
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

// Table is all kinds.
type Table struct {
	kinds []*Kind
	byGVR map[schema.GroupVersionResource]*Kind
	byGVK map[schema.GroupVersionKind]*Kind
}

// NewTable makes a table; two rows of one name are a programmer's error.
func NewTable(kinds ...*Kind) *Table {
	t := &Table{
		byGVR: make(map[schema.GroupVersionResource]*Kind, len(kinds)),
		byGVK: make(map[schema.GroupVersionKind]*Kind, len(kinds)),
	}
	for _, k := range kinds {
		if t.byGVR[k.GVR()] != nil {
			panic("resource: two rows for " + k.GVR().String())
		}
		t.kinds = append(t.kinds, k)
		t.byGVR[k.GVR()] = k
		t.byGVK[k.GVK] = k
	}
	return t
}

// Kinds are the rows, in their order.
func (t *Table) Kinds() []*Kind { return t.kinds }

// ByResource finds a row; nil if there is none.
func (t *Table) ByResource(gvr schema.GroupVersionResource) *Kind { return t.byGVR[gvr] }

// ByKind finds a row; nil if there is none.
func (t *Table) ByKind(gvk schema.GroupVersionKind) *Kind { return t.byGVK[gvk] }
