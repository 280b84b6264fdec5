package pipeline

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/apiserver/internal/codec"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// Target identifies an object, a collection (empty Name) or a subresource.
type Target struct {
	Resource    schema.GroupVersionResource
	Subresource string
	Namespace   string
	Name        string
}

// MediaType is the encoding of a body.
type MediaType = codec.MediaType

// Media types of bodies.
const (
	JSON     = codec.JSON
	YAML     = codec.YAML
	Protobuf = codec.Protobuf
	Message  = codec.Message
)

// Body is an object as a client sent it. The pipeline decodes it after it has authorized the
// request.
type Body struct {
	Data []byte
	Type MediaType
	// GVK is the declared kind of a body whose encoding does not include it (Message). Otherwise
	// it is empty.
	GVK schema.GroupVersionKind
}

// GetOptions are the options of a get.
type GetOptions struct {
	ResourceVersion string
}

// ListOptions are the options of a list and of a deletecollection.
type ListOptions struct {
	LabelSelector, FieldSelector string
	ResourceVersion              string
	ResourceVersionMatch         string
	Limit                        int64
	Continue                     string
}

// List is the result of a list.
type List struct {
	Kind     *resource.Kind
	Items    []*watchcache.Item
	Revision store.Revision
	Continue string
	// Remaining is nil if the number is not known or nothing remains.
	Remaining *int64
	// Warnings are for the client of a deletecollection.
	Warnings []string
}

// WatchOptions are the options of a watch.
type WatchOptions struct {
	LabelSelector, FieldSelector string
	ResourceVersion              string
	ResourceVersionMatch         string
	// SendInitialEvents sends the current state, even if a resource version is given, followed by
	// a bookmark. NoInitialEvents never sends the current state, even if no resource version is
	// given: the watch starts with the next event.
	SendInitialEvents, NoInitialEvents bool
	AllowBookmarks                     bool
	// Ready, if set, is called when events or the end of the watch wait for Poll, which then
	// takes the place of Next. It must not block, nor call the watch.
	Ready func()
}

// Watch is a running watch.
type Watch interface {
	// Next waits for events and returns at least one. At the end of the watch it returns a
	// *apierrors.StatusError to be sent as an ERROR event, ctx's error, or an error for which
	// IsWatchOver returns true.
	Next(ctx context.Context) ([]*watchcache.Event, error)
	// Poll returns up to n of the waiting events. If it returns fewer, none is left, and
	// WatchOptions.Ready will be called for the next. An error is the end of the watch, as in
	// Next, after these events. The first call is for the initial state, for which Ready is not
	// called.
	Poll(ctx context.Context, n int) ([]*watchcache.Event, error)
	// Close ends the watch.
	Close()
}

// WriteOptions are common to all writes.
type WriteOptions struct {
	DryRun bool
	// FieldManager is the name that the client asked for, or empty. It then defaults to the first
	// part of UserAgent.
	FieldManager, UserAgent string
	// FieldValidation is "Ignore", "Warn", "Strict" or empty (Warn).
	FieldValidation string
	// Force applies to apply patches only.
	Force bool
	// RequestID, if set, makes the write repeatable (see requestid.go).
	RequestID string
}

// DeleteOptions are the options of a delete.
type DeleteOptions struct {
	WriteOptions
	Preconditions      *metav1.Preconditions
	GracePeriodSeconds *int64
	PropagationPolicy  *metav1.DeletionPropagation
	// OrphanDependents is the deprecated form of PropagationPolicy.
	OrphanDependents *bool
}

// Outcome is the result of a write. If there is an error, it is nil or has only the warnings that
// go with it.
type Outcome struct {
	// Item is the current object. For a post to a subresource, and for a view with a kind of its
	// own (Scale, Binding, TokenRequest), Item is nil and Other is the response.
	Item  *watchcache.Item
	Other resource.Object
	// Status is set if the response is a Status: for a binding, an eviction and, for most kinds,
	// a delete that removed the object. Only a delete sets Item as well.
	Status *metav1.Status
	// Created is true if an apply or update created the object.
	Created bool
	// Gone is true if a delete removed the object. Item is then its last state.
	Gone bool
	// Warnings are for the client.
	Warnings []string
}

// Write is one write of a batch. Only the fields that its verb needs are used.
type Write struct {
	// Verb is create, update, patch (with PatchType, which is types.ApplyPatchType for an apply)
	// or delete.
	Verb        string
	Target      Target
	Body        Body
	PatchType   types.PatchType
	Options     WriteOptions
	Delete      DeleteOptions
	Traceparent string
}

// Result is the result of one write of a batch.
type Result struct {
	Outcome *Outcome
	Err     error
}

// API is the pipeline as the fronts use it. The context contains the user (request.WithUser) and
// the trace. Every error is an *apierrors.StatusError, except those of a context that ended.
//
// Every method authorizes the request before it reads or decodes anything.
type API interface {
	// Table returns the table of kinds.
	Table() *resource.Table
	// Get reads an object. Other is set for a subresource with a kind of its own (scale).
	Get(ctx context.Context, t Target, o GetOptions) (*Outcome, error)
	List(ctx context.Context, t Target, o ListOptions) (*List, error)
	Watch(ctx context.Context, t Target, o WatchOptions) (Watch, error)
	Create(ctx context.Context, t Target, b Body, o WriteOptions) (*Outcome, error)
	Update(ctx context.Context, t Target, b Body, o WriteOptions) (*Outcome, error)
	Patch(ctx context.Context, t Target, kind types.PatchType, b Body, o WriteOptions) (*Outcome, error)
	Delete(ctx context.Context, t Target, o DeleteOptions) (*Outcome, error)
	// DeleteCollection returns the objects whose deletion was requested.
	DeleteCollection(ctx context.Context, t Target, l ListOptions, o DeleteOptions) (*List, error)
	// Commit executes independent writes together.
	Commit(ctx context.Context, writes []Write) []Result
	// Authorize authorizes a request that only a front serves: a path, or a stream such as
	// pods/exec.
	Authorize(ctx context.Context, verb string, t Target) error
	AuthorizePath(ctx context.Context, verb, path string) error
	// Hold returns a context for such a stream, which ends when the user loses the right to it.
	Hold(ctx context.Context, t Target, verbs ...string) (held context.Context, release func())
}
