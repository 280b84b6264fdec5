package client

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

// ListOptions choose what a list returns.
type ListOptions struct {
	// Namespace is empty for all.
	Namespace     string
	LabelSelector string
	FieldSelector string
	// ResourceVersion: empty is the newest state, "0" any, another one at least
	// as new.
	ResourceVersion string
	// ResourceVersionMatch is empty, "Exact" or "NotOlderThan".
	ResourceVersionMatch string
	// Limit bounds the number of objects; Continue goes on from ListMeta.Continue.
	Limit    int64
	Continue string
	// PageSize is the largest number of objects in one message; 0 means the
	// server's choice. It does not change what is returned.
	PageSize int32
}

// ListMeta is what a list says beside its items.
type ListMeta struct {
	ResourceVersion string
	Continue        string
	// RemainingItemCount is 0 where it is not known.
	RemainingItemCount int64
}

// WatchOptions choose what a watch reports.
type WatchOptions struct {
	// Namespace is empty for all.
	Namespace string
	// Name restricts the watch to one object.
	Name          string
	LabelSelector string
	FieldSelector string
	// ResourceVersion is where to start after; empty starts with the present
	// state as Added events.
	ResourceVersion string
	// SendInitialEvents sends the present state first, and then a bookmark with
	// InitialEnd.
	SendInitialEvents bool
	AllowBookmarks    bool
}

type writeOptions struct {
	rpc         resourcev1.WriteOptions
	subresource string
	force       bool
}

// WriteOption changes a write.
type WriteOption func(*writeOptions)

// DryRun does everything but store.
func DryRun() WriteOption { return func(o *writeOptions) { o.rpc.DryRun = true } }

// FieldManager names the writer in managedFields.
func FieldManager(name string) WriteOption {
	return func(o *writeOptions) { o.rpc.FieldManager = name }
}

// Subresource writes to a subresource, for instance "status".
func Subresource(name string) WriteOption { return func(o *writeOptions) { o.subresource = name } }

// Force lets Apply take over fields that other managers own.
func Force() WriteOption { return func(o *writeOptions) { o.force = true } }

func (c *Client) writeOptions(opts []WriteOption) *writeOptions {
	o := &writeOptions{}
	o.rpc.FieldManager = c.fieldManager()
	for _, f := range opts {
		f(o)
	}
	return o
}

// fieldManager is the default one; a nil client (a Write made before its client
// is known) leaves it to Commit.
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
	dryRun        bool
}

// DeleteOption changes a delete.
type DeleteOption func(*deleteOptions)

// Grace overrides the object's grace period; 0 deletes at once.
func Grace(seconds int64) DeleteOption { return func(o *deleteOptions) { o.grace = &seconds } }

// UID deletes only the object with this uid.
func UID(uid types.UID) DeleteOption {
	return func(o *deleteOptions) { o.precondition().Uid = string(uid) }
}

// ResourceVersion deletes only the object in this version.
func ResourceVersion(rv string) DeleteOption {
	return func(o *deleteOptions) { o.precondition().ResourceVersion = rv }
}

// Propagation says what becomes of the object's dependents.
func Propagation(p metav1.DeletionPropagation) DeleteOption {
	return func(o *deleteOptions) { o.propagation = string(p) }
}

// DryRunDelete does everything but delete.
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
