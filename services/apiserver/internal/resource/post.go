package resource

import (
	"context"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Action names what a posted object asks of another part of the apiserver, which implements it. The
// pipeline gets the implementations when it is made.
type Action uint8

// The actions.
const (
	NoAction Action = iota
	// ReviewToken and ReviewSelf say which user a token, or the request, belongs to.
	ReviewToken
	ReviewSelf
	// ReviewAccess, ReviewLocalAccess and ReviewSelfAccess say whether a request would be allowed,
	// ReviewSelfRules what the user may do.
	ReviewAccess
	ReviewLocalAccess
	ReviewSelfAccess
	ReviewSelfRules
	// IssueToken issues a token of a service account.
	IssueToken
)

// Forward names the subresource that objects posted to a virtual kind are for. The object's name is
// that of the subresource's parent.
type Forward struct {
	Resource    schema.GroupVersionResource
	Subresource string
}

// Change is how a posted object changes its parent: a Binding gives a Pod its node. The parent is
// neither defaulted nor validated, and its managed fields remain.
type Change struct {
	// Check refuses an object because of what it says, or because it is not about the parent.
	Check func(posted Object, namespace, name string) error
	// Allowed refuses the change of a parent in its present state.
	Allowed func(parent, posted Object) error
	// Apply returns the new parent. It shares with the old one what it does not change.
	Apply func(parent, posted Object, now time.Time) Object
}

// Removal is how a posted object removes its parent: an Eviction deletes a Pod.
type Removal struct {
	// Check refuses an object that is not about the parent.
	Check func(posted Object, name string) error
	// Options returns the options of the delete, or nil.
	Options func(posted Object) *metav1.DeleteOptions
	// Recorded reports whether the parent says why it is removed, and Record makes it say so.
	Recorded func(parent Object) bool
	Record   func(parent Object, now time.Time)
	// Budget bounds the removals.
	Budget *Budget
}

// Budget is a kind whose objects allow a number of removals, and count them in their status.
type Budget struct {
	Resource schema.GroupVersionResource
	// Exempt reports whether a parent may be removed whatever the budgets say.
	Exempt func(parent Object) bool
	// Covers reports whether a budget is about a parent, and Waives whether it lets this parent go
	// without counting it.
	Covers func(budget, parent Object) bool
	Waives func(budget, parent Object) bool
	// Charge counts a removal in a budget that the caller owns, or refuses it.
	Charge func(budget, parent Object, now time.Time) error
	// Several is the error for a parent that more than one budget covers.
	Several error
}

// Claimer claims what objects of a kind need besides themselves, such as the addresses of a
// Service.
type Claimer interface {
	// Claim may complete obj before it is validated; old is nil for a create. finish, which may
	// be nil, is called once and told whether the write succeeded.
	Claim(ctx context.Context, obj, old Object, dryRun bool) (finish func(ok bool), err error)
	// Released is called after an object was deleted.
	Released(ctx context.Context, old Object)
}
