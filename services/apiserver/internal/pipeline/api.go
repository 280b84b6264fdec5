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

// Target names an object, a collection (empty Name) or a subresource.
type Target struct {
	Resource    schema.GroupVersionResource
	Subresource string
	Namespace   string
	Name        string
}

// MediaType is how a body is written.
type MediaType = codec.MediaType

// The media types that bodies come in.
const (
	JSON     = codec.JSON
	YAML     = codec.YAML
	Protobuf = codec.Protobuf
	Message  = codec.Message
)

// Body is an object as a client sent it. The pipeline decodes it after it has
// authorized the request.
type Body struct {
	Data []byte
	Type MediaType
	// GVK is what the body is declared to hold where its encoding does not say
	// (Message); otherwise it is empty.
	GVK schema.GroupVersionKind
}

// GetOptions are those of a get.
type GetOptions struct {
	ResourceVersion string
}

// ListOptions are those of a list and of a deletecollection.
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
	// Remaining is nil where it is not known or nothing remains.
	Remaining *int64
	// Warnings are for the client (of a deletecollection).
	Warnings []string
}

// WatchOptions are those of a watch.
type WatchOptions struct {
	LabelSelector, FieldSelector string
	ResourceVersion              string
	ResourceVersionMatch         string
	// SendInitialEvents sends the present state, also where a resource version is
	// named, and a bookmark at its end. NoInitialEvents sends nothing of it, also
	// where none is named: what comes from now on.
	SendInitialEvents, NoInitialEvents bool
	AllowBookmarks                     bool
}

// Watch is a running watch.
type Watch interface {
	// Next waits for the next events, at least one. At the end it returns a
	// *apierrors.StatusError that belongs into an ERROR event, ctx's error, or one of
	// which IsWatchOver is true.
	Next(ctx context.Context) ([]*watchcache.Event, error)
	// Close ends the watch.
	Close()
}

// WriteOptions are common to all writes.
type WriteOptions struct {
	DryRun bool
	// FieldManager is empty or what the client asked for; UserAgent is what it
	// defaults from.
	FieldManager, UserAgent string
	// FieldValidation is "Ignore", "Warn", "Strict" or empty (Warn).
	FieldValidation string
	// Force is for apply.
	Force bool
}

// DeleteOptions are those of a delete.
type DeleteOptions struct {
	WriteOptions
	Preconditions      *metav1.Preconditions
	GracePeriodSeconds *int64
	PropagationPolicy  *metav1.DeletionPropagation
	// OrphanDependents is the old form of PropagationPolicy.
	OrphanDependents *bool
}

// Outcome is the result of a write. Beside an error it is nil, or holds the warnings
// that belong to the refusal and nothing else.
type Outcome struct {
	// Item is the object as it is now. Of a post to a subresource and of a view
	// with a kind of its own (Scale, Binding, TokenRequest), Item is nil and
	// Other holds the answer.
	Item  *watchcache.Item
	Other resource.Object
	// Status is set where the answer is a Status (binding, eviction, for most
	// kinds a delete that left nothing); only of a delete, Item is set as well.
	Status *metav1.Status
	// Created is set by an apply or update that created.
	Created bool
	// Gone is set by a delete that left nothing; Item is then the last state.
	Gone bool
	// Warnings are for the client.
	Warnings []string
}

// Write is one write of a batch: exactly one of the fields that a verb needs.
type Write struct {
	// Verb is create, update, patch (with PatchType; apply is types.ApplyPatchType)
	// or delete.
	Verb        string
	Target      Target
	Body        Body
	PatchType   types.PatchType
	Options     WriteOptions
	Delete      DeleteOptions
	Traceparent string
}

// Result is the verdict on one write of a batch.
type Result struct {
	Outcome *Outcome
	Err     error
}

// API is what the fronts see of the pipeline. The user is in the context
// (request.WithUser), the trace as well. Every error is a
// *apierrors.StatusError, but for those of a context that ended.
//
// Every method authorizes before it reads or decodes anything.
type API interface {
	// Table is the table of kinds.
	Table() *resource.Table
	// Get reads an object; Other is set for a subresource with a kind of its own
	// (scale).
	Get(ctx context.Context, t Target, o GetOptions) (*Outcome, error)
	List(ctx context.Context, t Target, o ListOptions) (*List, error)
	Watch(ctx context.Context, t Target, o WatchOptions) (Watch, error)
	Create(ctx context.Context, t Target, b Body, o WriteOptions) (*Outcome, error)
	Update(ctx context.Context, t Target, b Body, o WriteOptions) (*Outcome, error)
	Patch(ctx context.Context, t Target, kind types.PatchType, b Body, o WriteOptions) (*Outcome, error)
	Delete(ctx context.Context, t Target, o DeleteOptions) (*Outcome, error)
	// DeleteCollection returns what was asked to go.
	DeleteCollection(ctx context.Context, t Target, l ListOptions, o DeleteOptions) (*List, error)
	// Commit carries out independent writes together.
	Commit(ctx context.Context, writes []Write) []Result
	// Authorize decides on a request that only a front serves: a path, or a
	// stream (pods/exec and its kin).
	Authorize(ctx context.Context, verb string, t Target) error
	AuthorizePath(ctx context.Context, verb, path string) error
	// Hold is for such a stream: its context ends when the user may no longer do that.
	Hold(ctx context.Context, t Target, verbs ...string) (held context.Context, release func())
}
