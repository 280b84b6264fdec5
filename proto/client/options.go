package client

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

// ListOptions select what a list returns. The zero value selects all objects of the kind,
// in their newest state.
type ListOptions struct {
	// Namespace restricts the list to a namespace; empty means all namespaces.
	Namespace string
	// LabelSelector restricts the list by labels, for instance "app=web,tier!=test".
	LabelSelector string
	// FieldSelector restricts the list by fields that the kind supports, for instance
	// "spec.nodeName=node-0"; metadata.name and metadata.namespace always work.
	FieldSelector string
	// ResourceVersion selects the state to read: empty means the newest, "0" any, and a
	// resource version one that is at least as new.
	ResourceVersion string
	// ResourceVersionMatch is empty, "Exact" (the state of ResourceVersion itself) or
	// "NotOlderThan".
	ResourceVersionMatch string
	// Limit is the largest number of objects to return; 0 returns all.
	Limit int64
	// Continue resumes a list that Limit ended: the ListMeta.Continue of that list. The
	// state is the same one. If the server no longer has it, the error is a 410
	// (apierrors.IsResourceExpired).
	Continue string
	// PageSize is the largest number of objects in one message; 0 lets the server choose
	// (500), and it sends at most 5,000. It does not change what is returned.
	PageSize int32
}

// ListMeta is the metadata of a list.
type ListMeta struct {
	// ResourceVersion is the state that was read, from which a watch can start.
	ResourceVersion string
	// Continue is set if Limit ended the list before its end.
	Continue string
	// RemainingItemCount is the number of objects after those returned; 0 if it is not
	// known.
	RemainingItemCount int64
}

// WatchOptions select what a watch reports. The zero value reports the present state of
// all objects of the kind as Added events, and then all changes.
type WatchOptions struct {
	// Namespace restricts the watch to a namespace; empty means all namespaces.
	Namespace string
	// Name restricts the watch to one object.
	Name string
	// LabelSelector restricts the watch by labels. An object that no longer matches is
	// reported as Deleted.
	LabelSelector string
	// FieldSelector restricts the watch by fields, in the same way.
	FieldSelector string
	// ResourceVersion is the state after which to start; empty starts with the present
	// state as Added events.
	ResourceVersion string
	// SendInitialEvents sends the present state first, ended by a Bookmark with
	// InitialEnd.
	SendInitialEvents bool
	// AllowBookmarks requests a Bookmark at least once a minute, so that a quiet watch
	// can be resumed from a recent state.
	AllowBookmarks bool
}

type writeOptions struct {
	rpc         resourcev1.WriteOptions
	subresource string
	force       bool
}

// WriteOption changes how a write is performed.
type WriteOption func(*writeOptions)

// DryRun makes the server validate and admit the write and return its result without
// storing it.
func DryRun() WriteOption { return func(o *writeOptions) { o.rpc.DryRun = true } }

// FieldManager sets the name under which the written fields are recorded in
// metadata.managedFields; by default the first part of [Config.UserAgent].
func FieldManager(name string) WriteOption {
	return func(o *writeOptions) { o.rpc.FieldManager = name }
}

// RequestID makes the write repeatable: a caller that got no answer, because the connection broke
// or the server said that the outcome is unknown, performs the write again with the same id, and
// gets the answer of the first attempt if that was performed. So a create, also one with a
// generateName, makes one object, and an update with a resourceVersion is no conflict with itself.
// id has up to 64 printable ASCII characters, is chosen at random for one write, and counts for one
// user. WriteOptions.request_id of the protocol says exactly what is promised.
func RequestID(id string) WriteOption { return func(o *writeOptions) { o.rpc.RequestId = id } }

// Subresource makes the write go to a subresource of the object, for instance "status" or
// "approval".
func Subresource(name string) WriteOption { return func(o *writeOptions) { o.subresource = name } }

// Force lets Apply take over fields that other managers own; without it, such fields are a
// conflict (409).
func Force() WriteOption { return func(o *writeOptions) { o.force = true } }

func (c *Client) writeOptions(opts []WriteOption) *writeOptions {
	o := &writeOptions{}
	o.rpc.FieldManager = c.fieldManager()
	for _, f := range opts {
		f(o)
	}
	return o
}

// fieldManager returns the default field manager. A nil client, of a Write that is built
// before its client is known, leaves it to Commit.
func (c *Client) fieldManager() string {
	if c == nil {
		return ""
	}
	return c.manager
}

type deleteOptions struct {
	grace         *int64
	preconditions *resourcev1.Preconditions
	propagation   string
	requestID     string
	dryRun        bool
}

// DeleteOption changes how an object is deleted.
type DeleteOption func(*deleteOptions)

// Grace overrides the object's grace period, in seconds. 0 deletes it at once, and for a
// pod without waiting for the node.
func Grace(seconds int64) DeleteOption { return func(o *deleteOptions) { o.grace = &seconds } }

// UID makes the delete fail with a conflict (409) unless the object has this uid.
func UID(uid types.UID) DeleteOption {
	return func(o *deleteOptions) { o.precondition().Uid = string(uid) }
}

// ResourceVersion makes the delete fail with a conflict (409) unless the object has this
// resource version.
func ResourceVersion(rv string) DeleteOption {
	return func(o *deleteOptions) { o.precondition().ResourceVersion = rv }
}

// Propagation selects what happens to the object's dependents: metav1.DeletePropagationOrphan,
// Background or Foreground. The default depends on the kind, and is Background for most.
func Propagation(p metav1.DeletionPropagation) DeleteOption {
	return func(o *deleteOptions) { o.propagation = string(p) }
}

// DeleteRequestID makes the delete repeatable, as [RequestID] does for other writes. It needs [UID]:
// once no object with that uid is left, the repeated delete succeeds.
func DeleteRequestID(id string) DeleteOption { return func(o *deleteOptions) { o.requestID = id } }

// DryRunDelete makes the server check the delete without performing it.
func DryRunDelete() DeleteOption { return func(o *deleteOptions) { o.dryRun = true } }

func (o *deleteOptions) precondition() *resourcev1.Preconditions {
	if o.preconditions == nil {
		o.preconditions = &resourcev1.Preconditions{}
	}
	return o.preconditions
}

func newDeleteOptions(opts []DeleteOption) *deleteOptions {
	o := &deleteOptions{}
	for _, f := range opts {
		f(o)
	}
	return o
}
