// Package review answers the kinds that are posted to query users and their rights: TokenReview,
// SelfSubjectReview and the access reviews of authorization.k8s.io.
//
// It must never decide anything itself: authn and authz decide, with the same results as for a
// request.
package review

import (
	"context"
	"errors"
	"fmt"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/authn"
	"keelson.dev/services/apiserver/internal/authz"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
)

// Actions returns the actions of the kinds that are posted for a review.
func Actions(n *authn.Authenticator, z *authz.Authorizers) map[resource.Action]pipeline.Action {
	r := &reviews{authn: n, authz: z}
	return map[resource.Action]pipeline.Action{
		resource.ReviewToken:       typed(r.token),
		resource.ReviewSelf:        typed(r.selfSubject),
		resource.ReviewAccess:      typed(r.access),
		resource.ReviewSelfAccess:  typed(r.selfAccess),
		resource.ReviewLocalAccess: typed(r.localAccess),
		resource.ReviewSelfRules:   typed(r.selfRules),
	}
}

type reviews struct {
	authn *authn.Authenticator
	authz *authz.Authorizers
}

// typed converts a function that fills in the status of the posted object to an action.
func typed[T resource.Object](f func(ctx context.Context, t pipeline.Target, obj T) error) pipeline.Action {
	return func(ctx context.Context, t pipeline.Target, obj resource.Object, _ pipeline.WriteOptions) (*pipeline.Outcome, error) {
		own, ok := obj.(T)
		if !ok {
			return nil, apierrors.NewInternalError(fmt.Errorf("%s: expected a %T, got %T", t.Resource.Resource, own, obj))
		}
		if err := f(ctx, t, own); err != nil {
			return nil, err
		}
		return &pipeline.Outcome{Other: own, Created: true}, nil
	}
}

func (r *reviews) token(ctx context.Context, _ pipeline.Target, o *authenticationv1.TokenReview) error {
	if o.Spec.Token == "" {
		return apierrors.NewBadRequest("token is required for TokenReview in authentication")
	}
	u, audiences, err := r.authn.Token(ctx, o.Spec.Token, r.authn.Audiences(o.Spec.Audiences))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	o.Status = authenticationv1.TokenReviewStatus{}
	if err != nil {
		o.Status.Error = err.Error()
		return nil
	}
	o.Status = authenticationv1.TokenReviewStatus{Authenticated: true, User: userInfo(authn.Authenticated(u)), Audiences: audiences}
	return nil
}

func (r *reviews) selfSubject(ctx context.Context, _ pipeline.Target, o *authenticationv1.SelfSubjectReview) error {
	o.ObjectMeta = metav1.ObjectMeta{CreationTimestamp: metav1.Now()} // as in Kubernetes
	o.Status = authenticationv1.SelfSubjectReviewStatus{UserInfo: userInfo(request.UserFrom(ctx))}
	return nil
}

func userInfo(u request.User) authenticationv1.UserInfo {
	info := authenticationv1.UserInfo{Username: u.Name, UID: u.UID, Groups: u.Groups}
	if len(u.Extra) > 0 {
		info.Extra = make(map[string]authenticationv1.ExtraValue, len(u.Extra))
		for k, v := range u.Extra {
			info.Extra[k] = v
		}
	}
	return info
}

func (r *reviews) access(ctx context.Context, t pipeline.Target, o *authorizationv1.SubjectAccessReview) error {
	errs := validate(o.Spec.ResourceAttributes, o.Spec.NonResourceAttributes)
	errs = append(errs, subject(o.Spec.User, o.Spec.Groups)...)
	errs = append(errs, noMetadata(o.ObjectMeta)...)
	if len(errs) > 0 {
		return invalid(errs)
	}
	o.Status = r.decide(ctx, specUser(o.Spec), o.Spec.ResourceAttributes, o.Spec.NonResourceAttributes)
	return ctx.Err()
}

func (r *reviews) localAccess(ctx context.Context, t pipeline.Target, o *authorizationv1.LocalSubjectAccessReview) error {
	errs := validate(o.Spec.ResourceAttributes, o.Spec.NonResourceAttributes)
	errs = append(errs, subject(o.Spec.User, o.Spec.Groups)...)
	bare := o.ObjectMeta
	bare.Namespace = ""
	errs = append(errs, noMetadata(bare)...)
	if a := o.Spec.ResourceAttributes; a != nil && a.Namespace != t.Namespace {
		errs = append(errs, field.Invalid(field.NewPath("spec", "resourceAttributes", "namespace"), a.Namespace, "must match metadata.namespace"))
	}
	if o.Spec.NonResourceAttributes != nil {
		errs = append(errs, field.Invalid(field.NewPath("spec", "nonResourceAttributes"), o.Spec.NonResourceAttributes, "disallowed on this kind of request"))
	}
	if len(errs) > 0 {
		return invalid(errs)
	}
	o.Status = r.decide(ctx, specUser(o.Spec), o.Spec.ResourceAttributes, nil)
	return ctx.Err()
}

func (r *reviews) selfAccess(ctx context.Context, _ pipeline.Target, o *authorizationv1.SelfSubjectAccessReview) error {
	errs := append(validate(o.Spec.ResourceAttributes, o.Spec.NonResourceAttributes), noMetadata(o.ObjectMeta)...)
	if len(errs) > 0 {
		return invalid(errs)
	}
	o.Status = r.decide(ctx, request.UserFrom(ctx), o.Spec.ResourceAttributes, o.Spec.NonResourceAttributes)
	return ctx.Err()
}

func (r *reviews) selfRules(ctx context.Context, _ pipeline.Target, o *authorizationv1.SelfSubjectRulesReview) error {
	if o.Spec.Namespace == "" {
		return apierrors.NewBadRequest("no namespace on request")
	}
	u := request.UserFrom(ctx)
	rules, err := r.authz.RBAC.RulesFor(u, o.Spec.Namespace)
	// As in Kubernetes, the response does not contain the request's spec.
	o.ObjectMeta, o.Spec = metav1.ObjectMeta{}, authorizationv1.SelfSubjectRulesReviewSpec{}
	// Kubernetes' clients expect empty lists rather than null.
	o.Status = authorizationv1.SubjectRulesReviewStatus{
		ResourceRules: []authorizationv1.ResourceRule{}, NonResourceRules: []authorizationv1.NonResourceRule{},
	}
	for _, rule := range rules {
		if len(rule.Resources) > 0 {
			o.Status.ResourceRules = append(o.Status.ResourceRules, authorizationv1.ResourceRule{
				Verbs: rule.Verbs, APIGroups: rule.APIGroups, Resources: rule.Resources, ResourceNames: rule.ResourceNames,
			})
		}
		if len(rule.NonResourceURLs) > 0 {
			o.Status.NonResourceRules = append(o.Status.NonResourceRules, authorizationv1.NonResourceRule{
				Verbs: rule.Verbs, NonResourceURLs: rule.NonResourceURLs,
			})
		}
	}
	if err != nil {
		o.Status.EvaluationError = err.Error()
	}
	if _, isNode := authz.NodeName(u); isNode {
		o.Status.Incomplete = true
		o.Status.EvaluationError = "node authorizer does not support user rule resolution"
	}
	return nil
}

// decide authorizes the request that the review describes.
func (r *reviews) decide(ctx context.Context, u request.User, on *authorizationv1.ResourceAttributes, path *authorizationv1.NonResourceAttributes) authorizationv1.SubjectAccessReviewStatus {
	a := &request.Attributes{User: u}
	var invalid error
	if on != nil {
		a.Verb, a.Namespace, a.Name, a.Subresource = on.Verb, on.Namespace, on.Name, on.Subresource
		a.Resource = schema.GroupVersionResource{Group: on.Group, Version: on.Version, Resource: on.Resource}
		var errs [2]error
		a.FieldSelector, errs[0] = fieldSelector(on.FieldSelector)
		a.LabelSelector, errs[1] = labelSelector(on.LabelSelector)
		invalid = errors.Join(errs[:]...)
	} else {
		a.Verb, a.Path = path.Verb, path.Path
	}
	allowed, reason, err := r.authz.Authorize(ctx, a)
	status := authorizationv1.SubjectAccessReviewStatus{Allowed: allowed && err == nil, Reason: reason}
	if err = errors.Join(err, invalid); err != nil {
		status.EvaluationError = err.Error()
	}
	return status
}

// fieldSelector returns the text of a selector. Invalid parts are omitted, which makes the
// request less specific, so that it needs more rights, never fewer.
func fieldSelector(s *authorizationv1.FieldSelectorAttributes) (string, error) {
	if s == nil {
		return "", nil
	}
	if s.RawSelector != "" {
		parsed, err := fields.ParseSelector(s.RawSelector)
		if err != nil {
			return "", fmt.Errorf("field selector: %w", err)
		}
		return parsed.String(), nil
	}
	var terms []fields.Selector
	var errs []error
	for _, r := range s.Requirements {
		switch {
		case len(r.Values) != 1:
			errs = append(errs, errors.New("fieldSelectors must have one value"))
		case r.Operator == metav1.FieldSelectorOpIn:
			terms = append(terms, fields.OneTermEqualSelector(r.Key, r.Values[0]))
		case r.Operator == metav1.FieldSelectorOpNotIn:
			terms = append(terms, fields.OneTermNotEqualSelector(r.Key, r.Values[0]))
		default:
			errs = append(errs, fmt.Errorf("%q is not a valid field selector operator", r.Operator))
		}
	}
	if len(terms) == 0 {
		return "", errors.Join(errs...)
	}
	return fields.AndSelectors(terms...).String(), errors.Join(errs...)
}

func labelSelector(s *authorizationv1.LabelSelectorAttributes) (string, error) {
	if s == nil {
		return "", nil
	}
	if s.RawSelector != "" {
		parsed, err := labels.Parse(s.RawSelector)
		if err != nil {
			return "", fmt.Errorf("label selector: %w", err)
		}
		return parsed.String(), nil
	}
	operators := map[metav1.LabelSelectorOperator]selection.Operator{
		metav1.LabelSelectorOpIn: selection.In, metav1.LabelSelectorOpNotIn: selection.NotIn,
		metav1.LabelSelectorOpExists: selection.Exists, metav1.LabelSelectorOpDoesNotExist: selection.DoesNotExist,
	}
	selector := labels.NewSelector()
	var errs []error
	for _, r := range s.Requirements {
		requirement, err := labels.NewRequirement(r.Key, operators[r.Operator], r.Values)
		if err != nil {
			errs = append(errs, fmt.Errorf("label selector: %w", err))
			continue
		}
		selector = selector.Add(*requirement)
	}
	return selector.String(), errors.Join(errs...)
}

func specUser(s authorizationv1.SubjectAccessReviewSpec) request.User {
	u := request.User{Name: s.User, UID: s.UID, Groups: s.Groups}
	if len(s.Extra) > 0 {
		u.Extra = make(map[string][]string, len(s.Extra))
		for k, v := range s.Extra {
			u.Extra[k] = v
		}
	}
	return u
}

func validate(on *authorizationv1.ResourceAttributes, path *authorizationv1.NonResourceAttributes) (errs field.ErrorList) {
	spec := field.NewPath("spec")
	if (on == nil) == (path == nil) {
		errs = append(errs, field.Invalid(spec, path, "exactly one of nonResourceAttributes or resourceAttributes must be specified"))
	}
	if on == nil {
		return errs
	}
	base := spec.Child("resourceAttributes")
	both := "may not specified at the same time as requirements"
	if s := on.FieldSelector; s != nil {
		p := base.Child("fieldSelector")
		if s.RawSelector != "" && len(s.Requirements) > 0 {
			errs = append(errs, field.Invalid(p.Child("rawSelector"), s.RawSelector, both))
		}
		if s.RawSelector == "" && len(s.Requirements) == 0 {
			errs = append(errs, field.Required(p.Child("requirements"), "when fieldSelector is specified, requirements or rawSelector is required"))
		}
	}
	if s := on.LabelSelector; s != nil {
		p := base.Child("labelSelector")
		if s.RawSelector != "" && len(s.Requirements) > 0 {
			errs = append(errs, field.Invalid(p.Child("rawSelector"), s.RawSelector, both))
		}
		if s.RawSelector == "" && len(s.Requirements) == 0 {
			errs = append(errs, field.Required(p.Child("requirements"), "when labelSelector is specified, requirements or rawSelector is required"))
		}
	}
	return errs
}

func subject(user string, groups []string) field.ErrorList {
	if user == "" && len(groups) == 0 {
		return field.ErrorList{field.Invalid(field.NewPath("spec", "user"), user, "at least one of user or group must be specified")}
	}
	return nil
}

func noMetadata(m metav1.ObjectMeta) field.ErrorList {
	m.ManagedFields = nil
	if !equality.Semantic.DeepEqual(metav1.ObjectMeta{}, m) {
		return field.ErrorList{field.Invalid(field.NewPath("metadata"), m, "must be empty")}
	}
	return nil
}

// invalid returns the error of an invalid review. As in Kubernetes, it does not name the kind.
func invalid(errs field.ErrorList) error {
	return apierrors.NewInvalid(schema.GroupKind{Group: authorizationv1.GroupName}, "", errs)
}
