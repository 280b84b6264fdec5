package token

import (
	"context"
	"fmt"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/resource"
)

// Bounds and default of spec.expirationSeconds, in seconds.
const (
	minSeconds     = 10 * 60
	maxSeconds     = 1 << 32
	defaultSeconds = 60 * 60
)

// Lookup reads objects consistently.
type Lookup interface {
	GetFresh(ctx context.Context, group, resource, namespace, name string) (resource.Object, bool, error)
}

// Requests issues tokens for requests to the subresource serviceaccounts/token.
type Requests struct {
	Issuer *Issuer
	Lookup Lookup
	// MaxSeconds limits the requested lifetime, in seconds. 0 means no limit but Kubernetes' own.
	MaxSeconds int64
}

var gvk = authenticationv1.SchemeGroupVersion.WithKind("TokenRequest")

// Create issues a token for the service account. The warnings are for the client. Every error is
// an *apierrors.StatusError, except those of a context that ended. If dryRun is true, everything
// is checked and the token is empty.
func (r *Requests) Create(ctx context.Context, namespace, name string, in *authenticationv1.TokenRequest, dryRun bool) (out *authenticationv1.TokenRequest, warnings []string, err error) {
	if in.Name != "" && in.Name != name {
		return nil, nil, invalid(name, field.Invalid(field.NewPath("metadata", "name"), in.Name, "must match the service account name if specified"))
	}
	if in.Namespace != "" && in.Namespace != namespace {
		return nil, nil, invalid(name, field.Invalid(field.NewPath("metadata", "namespace"), in.Namespace, "must match the service account namespace if specified"))
	}
	account, err := get[*corev1.ServiceAccount](ctx, r.Lookup, "serviceaccounts", namespace, name)
	if err != nil {
		return nil, nil, err
	}
	if in.UID != "" && in.UID != account.UID {
		return nil, nil, apierrors.NewConflict(schema.GroupResource{Group: gvk.Group, Resource: gvk.Kind}, name,
			fmt.Errorf("the UID in the token request (%s) does not match the UID of the service account (%s)", in.UID, account.UID))
	}
	out = in.DeepCopy()
	out.Name, out.Namespace, out.UID = account.Name, account.Namespace, account.UID
	if len(out.Spec.Audiences) == 0 {
		out.Spec.Audiences = r.Issuer.Audiences()
	}
	if out.Spec.ExpirationSeconds == nil {
		out.Spec.ExpirationSeconds = new(int64)
		*out.Spec.ExpirationSeconds = defaultSeconds
	}
	if errs := validate(out); len(errs) > 0 {
		return nil, nil, invalid("", errs...)
	}
	claims := &Claims{
		Audience: out.Spec.Audiences, Namespace: namespace, ServiceAccount: Ref{account.Name, string(account.UID)},
		IssuedAt: r.Issuer.now().Truncate(time.Second),
	}
	if err := r.bind(ctx, claims, out.Spec.BoundObjectRef); err != nil {
		return nil, nil, err
	}
	if asked := *out.Spec.ExpirationSeconds; r.MaxSeconds > 0 && asked > r.MaxSeconds {
		warnings = append(warnings, fmt.Sprintf("requested expiration of %d seconds shortened to %d seconds", asked, r.MaxSeconds))
		*out.Spec.ExpirationSeconds = r.MaxSeconds
	}
	claims.Expiry = claims.IssuedAt.Add(time.Duration(*out.Spec.ExpirationSeconds) * time.Second)
	out.CreationTimestamp = metav1.NewTime(claims.IssuedAt)
	out.Status = authenticationv1.TokenRequestStatus{ExpirationTimestamp: metav1.NewTime(claims.Expiry)}
	if dryRun {
		return out, warnings, nil
	}
	if out.Status.Token, err = r.Issuer.Sign(claims); err != nil {
		return nil, nil, apierrors.NewInternalError(err)
	}
	return out, warnings, nil
}

// bind binds the claims to the object that the request names.
func (r *Requests) bind(ctx context.Context, c *Claims, ref *authenticationv1.BoundObjectReference) error {
	if ref == nil {
		return nil
	}
	kind := schema.FromAPIVersionAndKind(ref.APIVersion, ref.Kind)
	if kind.Group != "" {
		return apierrors.NewBadRequest("cannot bind token to object of type " + kind.String())
	}
	var uid types.UID
	switch kind.Kind {
	case "Pod":
		pod, err := get[*corev1.Pod](ctx, r.Lookup, "pods", c.Namespace, ref.Name)
		if err != nil {
			return err
		}
		if pod.Spec.ServiceAccountName != c.ServiceAccount.Name {
			return apierrors.NewBadRequest(fmt.Sprintf("cannot bind token for serviceaccount %q to pod running with different serviceaccount name.", c.ServiceAccount.Name))
		}
		uid = pod.UID
		c.Pod = &Ref{pod.Name, string(uid)}
		if pod.Spec.NodeName != "" {
			c.Node = &Ref{Name: pod.Spec.NodeName}
			node, err := get[*corev1.Node](ctx, r.Lookup, "nodes", "", pod.Spec.NodeName)
			switch {
			case err == nil:
				c.Node.UID = string(node.UID)
			case !apierrors.IsNotFound(err):
				return err
			}
		}
	case "Secret":
		secret, err := get[*corev1.Secret](ctx, r.Lookup, "secrets", c.Namespace, ref.Name)
		if err != nil {
			return err
		}
		uid = secret.UID
		c.Secret = &Ref{secret.Name, string(uid)}
	case "Node":
		node, err := get[*corev1.Node](ctx, r.Lookup, "nodes", "", ref.Name)
		if err != nil {
			return err
		}
		uid = node.UID
		c.Node = &Ref{node.Name, string(uid)}
	default:
		return apierrors.NewBadRequest("cannot bind token to object of type " + kind.String())
	}
	if ref.UID != "" && ref.UID != uid {
		return apierrors.NewConflict(schema.GroupResource{Resource: kind.Kind}, ref.Name,
			fmt.Errorf("the UID in the bound object reference (%s) does not match the UID in record. The object might have been deleted and then recreated", ref.UID))
	}
	return nil
}

func validate(tr *authenticationv1.TokenRequest) (errs field.ErrorList) {
	path := field.NewPath("spec", "expirationSeconds")
	if seconds := *tr.Spec.ExpirationSeconds; seconds < minSeconds {
		errs = append(errs, field.Invalid(path, seconds, "may not specify a duration less than 10 minutes"))
	} else if seconds > maxSeconds {
		errs = append(errs, field.Invalid(path, seconds, "may not specify a duration larger than 2^32 seconds"))
	}
	return errs
}

func invalid(name string, errs ...*field.Error) error {
	return apierrors.NewInvalid(gvk.GroupKind(), name, errs)
}

// get reads an object of the core group. If it does not exist, the error is NotFound.
func get[T resource.Object](ctx context.Context, l Lookup, plural, namespace, name string) (T, error) {
	var none T
	o, ok, err := l.GetFresh(ctx, "", plural, namespace, name)
	if err != nil {
		if ctx.Err() != nil {
			return none, ctx.Err()
		}
		return none, apierrors.NewInternalError(err)
	}
	if !ok {
		return none, apierrors.NewNotFound(schema.GroupResource{Resource: plural}, name)
	}
	return o.(T), nil
}
