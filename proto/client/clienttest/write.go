package clienttest

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/anypb"

	"keelson.dev/proto/client"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

// Create implements ResourceService.
func (s *Server) Create(ctx context.Context, req *resourcev1.CreateRequest) (*resourcev1.CreateResponse, error) {
	a, _, err := s.create(ctx, req)
	return &resourcev1.CreateResponse{Object: a}, rpcError(err)
}

// Update implements ResourceService.
func (s *Server) Update(ctx context.Context, req *resourcev1.UpdateRequest) (*resourcev1.UpdateResponse, error) {
	a, _, err := s.update(ctx, req)
	return &resourcev1.UpdateResponse{Object: a}, rpcError(err)
}

// Delete implements ResourceService.
func (s *Server) Delete(ctx context.Context, req *resourcev1.DeleteRequest) (*resourcev1.DeleteResponse, error) {
	resp, _, err := s.delete(ctx, req)
	return resp, rpcError(err)
}

// DeleteCollection implements ResourceService.
func (s *Server) DeleteCollection(ctx context.Context, req *resourcev1.DeleteCollectionRequest) (*resourcev1.DeleteCollectionResponse, error) {
	if err := s.failure("DeleteCollection", req.GetRef()); err != nil {
		return nil, rpcError(err)
	}
	f, err := newFilter(req.GetRef(), req.GetLabelSelector(), req.GetFieldSelector())
	if err != nil {
		return nil, rpcError(err)
	}
	s.mu.Lock()
	c, err := s.collection(req.GetRef())
	if err != nil {
		s.mu.Unlock()
		return nil, rpcError(err)
	}
	objs := c.selected(f)
	s.mu.Unlock()
	for _, obj := range objs {
		_, _, err := s.delete(ctx, &resourcev1.DeleteRequest{
			Ref:                c.kind.Ref(obj.GetNamespace(), obj.GetName(), ""),
			GracePeriodSeconds: req.GracePeriodSeconds,
			PropagationPolicy:  req.GetPropagationPolicy(),
			Options:            req.GetOptions(),
		})
		if err != nil && !apierrors.IsNotFound(err) {
			return nil, rpcError(err)
		}
	}
	return &resourcev1.DeleteCollectionResponse{Count: int64(len(objs))}, nil
}

// Commit implements ResourceService.
func (s *Server) Commit(ctx context.Context, req *resourcev1.CommitRequest) (*resourcev1.CommitResponse, error) {
	if err := s.failure("Commit", nil); err != nil {
		return nil, rpcError(err)
	}
	if len(req.GetWrites()) > client.MaxBatch {
		return nil, rpcError(apierrors.NewBadRequest(fmt.Sprintf("a batch of %d writes: at most %d", len(req.GetWrites()), client.MaxBatch)))
	}
	resp := &resourcev1.CommitResponse{}
	for _, w := range req.GetWrites() {
		r := s.one(ctx, w)
		if req.GetOmitObjects() {
			r.Object = nil
		}
		resp.Results = append(resp.Results, r)
	}
	return resp, nil
}

func (s *Server) one(ctx context.Context, w *resourcev1.Write) *resourcev1.WriteResult {
	if tp := w.GetTraceparent(); tp != "" {
		ctx = metadata.NewIncomingContext(ctx, metadata.Pairs("traceparent", tp))
	}
	var (
		r   = &resourcev1.WriteResult{}
		rv  uint64
		err error
	)
	switch v := w.GetWrite().(type) {
	case *resourcev1.Write_Create:
		r.Object, rv, err = s.create(ctx, v.Create)
	case *resourcev1.Write_Update:
		r.Object, rv, err = s.update(ctx, v.Update)
	case *resourcev1.Write_Patch:
		r.Object, rv, err = s.patch(ctx, v.Patch)
	case *resourcev1.Write_Apply:
		r.Object, rv, err = s.apply(ctx, v.Apply)
	case *resourcev1.Write_Delete:
		var resp *resourcev1.DeleteResponse
		resp, rv, err = s.delete(ctx, v.Delete)
		r.Object = resp.GetObject()
	default:
		err = apierrors.NewBadRequest("a write that writes nothing")
	}
	if err == nil {
		r.ResourceVersion = strconv.FormatUint(rv, 10)
		return r
	}
	st := metav1.Status{Status: metav1.StatusFailure, Message: err.Error(), Reason: metav1.StatusReasonInternalError, Code: 500}
	if se, ok := err.(apierrors.APIStatus); ok { //nolint:errorlint // statuses are made here and never wrapped.
		st = se.Status()
	}
	data, merr := st.Marshal()
	if merr == nil {
		r.Status = &anypb.Any{TypeUrl: "type.googleapis.com/k8s.io.apimachinery.pkg.apis.meta.v1.Status", Value: data}
	}
	return r
}

func (s *Server) admitted(verb string, obj client.Object) error {
	if s.admit == nil {
		return nil
	}
	return s.admit(verb, obj)
}

func (s *Server) create(ctx context.Context, req *resourcev1.CreateRequest) (*anypb.Any, uint64, error) {
	ref := req.GetRef()
	if err := s.failure("Create", ref); err != nil {
		return nil, 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.collection(ref)
	if err != nil {
		return nil, 0, err
	}
	if sub := ref.GetSubresource(); sub != "" {
		return s.post(ctx, c, ref, sub, req)
	}
	obj, err := decode(c.kind, req.GetObject())
	if err != nil {
		return nil, 0, err
	}
	if group := c.kind.GVK.Group; group == "authentication.k8s.io" || group == "authorization.k8s.io" {
		if err := s.admitted("create", obj); err != nil {
			return nil, 0, err
		}
		a, err := encode(obj) // a review is answered, not stored
		return a, s.revision, err
	}
	if c.kind.Namespaced && obj.GetNamespace() == "" {
		obj.SetNamespace(ref.GetNamespace())
	}
	if obj.GetNamespace() != ref.GetNamespace() {
		return nil, 0, apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	if c.kind.Namespaced && obj.GetNamespace() == "" {
		return nil, 0, apierrors.NewBadRequest("an empty namespace may not be set during creation")
	}
	request := requestKey("create", ref.GetNamespace(), obj.GetName(), c, req.GetOptions())
	if made := s.performed(c, request); made != nil {
		a, err := encode(made)
		return a, revisionOf(made), err
	}
	if obj.GetName() == "" && obj.GetGenerateName() != "" {
		obj.SetName(obj.GetGenerateName() + strings.ReplaceAll(uuid.NewString(), "-", "")[:5])
	}
	if obj.GetName() == "" {
		return nil, 0, apierrors.NewInvalid(c.kind.GVK.GroupKind(), "", nil)
	}
	if c.objects[client.KeyOf(obj)] != nil {
		return nil, 0, apierrors.NewAlreadyExists(c.resource(), obj.GetName())
	}
	if obj.GetResourceVersion() != "" {
		return nil, 0, apierrors.NewBadRequest("resourceVersion should not be set on objects to be created")
	}
	obj.SetUID(types.UID(uuid.NewString()))
	obj.SetCreationTimestamp(metav1.NewTime(time.Now().Truncate(time.Second)))
	obj.SetDeletionTimestamp(nil)
	obj.SetGeneration(1)
	if ns, ok := obj.(*corev1.Namespace); ok && len(ns.Spec.Finalizers) == 0 {
		ns.Spec.Finalizers = []corev1.FinalizerName{corev1.FinalizerKubernetes}
	}
	if err := s.admitted("create", obj); err != nil {
		return nil, 0, err
	}
	if !req.GetOptions().GetDryRun() {
		s.record(ctx, c, nil, obj)
		s.perform(request, obj)
	}
	a, err := encode(obj)
	return a, s.revision, err
}

// post performs the subresources that are actions.
func (s *Server) post(ctx context.Context, c *collection, ref *resourcev1.Ref, sub string, req *resourcev1.CreateRequest) (*anypb.Any, uint64, error) {
	old, err := s.get(c, ref)
	if err != nil {
		return nil, 0, err
	}
	switch sub {
	case "binding":
		var b corev1.Binding
		if err := b.Unmarshal(req.GetObject().GetValue()); err != nil {
			return nil, 0, apierrors.NewBadRequest(err.Error())
		}
		if b.UID != "" && b.UID != old.GetUID() {
			return nil, 0, conflict(c, old, "the pod's uid is another")
		}
		pod := clone(old).(*corev1.Pod)
		if pod.DeletionTimestamp != nil {
			return nil, 0, conflict(c, old, "pod "+pod.Name+" is being deleted, cannot be assigned to a host")
		}
		if pod.Spec.NodeName != "" {
			return nil, 0, conflict(c, old, fmt.Sprintf("pod %s is already assigned to node %q", pod.Name, pod.Spec.NodeName))
		}
		pod.Spec.NodeName = b.Target.Name
		pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionTrue})
		s.record(ctx, c, old, pod)
		return nil, s.revision, nil
	case "eviction":
		s.remove(ctx, c, old, &resourcev1.DeleteRequest{})
		return nil, s.revision, nil
	}
	return nil, 0, apierrors.NewGenericServerResponse(404, "create", c.resource(), ref.GetName(), "no subresource "+sub, 0, true)
}

func revisionOf(obj client.Object) uint64 {
	rv, err := strconv.ParseUint(obj.GetResourceVersion(), 10, 64)
	if err != nil {
		return 0
	}
	return rv
}

func conflict(c *collection, obj client.Object, why string) error {
	return apierrors.NewConflict(c.resource(), obj.GetName(), fmt.Errorf("%s", why))
}

func (s *Server) update(ctx context.Context, req *resourcev1.UpdateRequest) (*anypb.Any, uint64, error) {
	ref := req.GetRef()
	if err := s.failure("Update", ref); err != nil {
		return nil, 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.collection(ref)
	if err != nil {
		return nil, 0, err
	}
	old, err := s.get(c, ref)
	if err != nil {
		return nil, 0, err
	}
	if ref.GetSubresource() == "scale" {
		return s.updateScale(ctx, c, old, req)
	}
	obj, err := decode(c.kind, req.GetObject())
	if err != nil {
		return nil, 0, err
	}
	return s.replace(ctx, c, ref.GetSubresource(), old, obj, req.GetOptions())
}

func (s *Server) updateScale(ctx context.Context, c *collection, old client.Object, req *resourcev1.UpdateRequest) (*anypb.Any, uint64, error) {
	var scale autoscalingv1.Scale
	if err := scale.Unmarshal(req.GetObject().GetValue()); err != nil {
		return nil, 0, apierrors.NewBadRequest(err.Error())
	}
	obj := clone(old)
	obj.SetResourceVersion(scale.ResourceVersion)
	part(obj, "Spec").FieldByName("Replicas").Set(reflect.ValueOf(&scale.Spec.Replicas))
	if _, _, err := s.replace(ctx, c, "", old, obj, req.GetOptions()); err != nil {
		return nil, 0, err
	}
	a, err := encode(scaleOf(obj))
	return a, s.revision, err
}

// replace stores obj in the place of old, as far as the subresource allows; s.mu is held.
func (s *Server) replace(ctx context.Context, c *collection, sub string, old, obj client.Object, o *resourcev1.WriteOptions) (*anypb.Any, uint64, error) {
	request := requestKey("change "+sub, old.GetNamespace(), old.GetName(), c, o)
	if made := s.performed(c, request); made != nil {
		a, err := encode(made)
		return a, revisionOf(made), err
	}
	if rv := obj.GetResourceVersion(); rv != "" && rv != old.GetResourceVersion() {
		return nil, 0, conflict(c, old, "the object has been modified; please apply your changes to the latest version and try again")
	}
	if uid := obj.GetUID(); uid != "" && uid != old.GetUID() {
		return nil, 0, conflict(c, old, fmt.Sprintf("Precondition failed: UID in precondition: %s, UID in object meta: %s", uid, old.GetUID()))
	}
	switch sub {
	case "":
		if st := part(obj, "Status"); st.IsValid() && hasStatusDoor(c.kind) {
			st.Set(part(clone(old), "Status"))
		}
		if ns, ok := obj.(*corev1.Namespace); ok {
			ns.Spec = *old.(*corev1.Namespace).Spec.DeepCopy()
		}
	case "finalize":
		next := clone(old).(*corev1.Namespace)
		next.Spec.Finalizers = obj.(*corev1.Namespace).Spec.Finalizers
		obj = next
	default: // status, approval and the like
		next := clone(old)
		part(next, "Status").Set(part(obj, "Status"))
		// As in Kubernetes, a status update may touch annotations, labels and
		// finalizers of no kind but those whose controllers need it.
		switch c.kind.Resource {
		case "deployments", "jobs", "nodes", "pods":
			next.SetAnnotations(obj.GetAnnotations())
		}
		obj = next
	}
	obj.SetUID(old.GetUID())
	obj.SetCreationTimestamp(old.GetCreationTimestamp())
	obj.SetDeletionTimestamp(old.GetDeletionTimestamp())
	obj.SetDeletionGracePeriodSeconds(old.GetDeletionGracePeriodSeconds())
	obj.SetGeneration(old.GetGeneration())
	obj.SetResourceVersion(old.GetResourceVersion())
	verb := "update"
	if sub != "" {
		verb += "/" + sub
	}
	if err := s.admitted(verb, obj); err != nil {
		return nil, 0, err
	}
	if sub == "" && newGeneration(c.kind, old, obj) {
		obj.SetGeneration(old.GetGeneration() + 1)
	}
	if !o.GetDryRun() && !reflect.DeepEqual(old, obj) {
		if obj.GetDeletionTimestamp() != nil && ended(obj) {
			s.record(ctx, c, old, nil)
			obj.SetResourceVersion(strconv.FormatUint(s.revision, 10))
		} else {
			s.record(ctx, c, old, obj)
			s.perform(request, obj)
		}
	}
	a, err := encode(obj)
	return a, s.revision, err
}

// newGeneration reports whether an update of the whole object makes a new generation: a changed
// spec does, and an annotation of a deployment, as in Kubernetes.
func newGeneration(k *client.Kind, old, obj client.Object) bool {
	if k.Resource == "deployments" && !maps.Equal(old.GetAnnotations(), obj.GetAnnotations()) {
		return true
	}
	spec := part(obj, "Spec")
	return spec.IsValid() && !reflect.DeepEqual(spec.Interface(), part(old, "Spec").Interface())
}

// hasStatusDoor reports whether only the subresource writes the kind's status.
func hasStatusDoor(k *client.Kind) bool { return k.Resource != "events" }

// ended reports whether nothing holds obj any more.
func ended(obj client.Object) bool {
	if len(obj.GetFinalizers()) > 0 {
		return false
	}
	switch o := obj.(type) {
	case *corev1.Namespace:
		return len(o.Spec.Finalizers) == 0
	case *corev1.Pod:
		return o.DeletionGracePeriodSeconds == nil || *o.DeletionGracePeriodSeconds == 0
	}
	return true
}

func (s *Server) delete(ctx context.Context, req *resourcev1.DeleteRequest) (*resourcev1.DeleteResponse, uint64, error) {
	ref := req.GetRef()
	if err := s.failure("Delete", ref); err != nil {
		return nil, 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.collection(ref)
	if err != nil {
		return nil, 0, err
	}
	old, err := s.get(c, ref)
	if req.GetOptions().GetRequestId() != "" {
		uid := req.GetPreconditions().GetUid()
		if uid == "" {
			return nil, 0, apierrors.NewBadRequest("a request id is not supported for a delete without the uid as its precondition")
		}
		if apierrors.IsNotFound(err) || err == nil && string(old.GetUID()) != uid {
			return &resourcev1.DeleteResponse{Gone: true}, s.revision, nil
		}
	}
	if err != nil {
		return nil, 0, err
	}
	if p := req.GetPreconditions(); p.GetUid() != "" && p.GetUid() != string(old.GetUID()) ||
		p.GetResourceVersion() != "" && p.GetResourceVersion() != old.GetResourceVersion() {
		return nil, 0, conflict(c, old, "Precondition failed")
	}
	if err := s.admitted("delete", old); err != nil {
		return nil, 0, err
	}
	obj := old
	gone := false
	if !req.GetOptions().GetDryRun() {
		obj, gone = s.remove(ctx, c, old, req)
	}
	a, err := encode(obj)
	return &resourcev1.DeleteResponse{Object: a, Gone: gone}, s.revision, err
}

// remove deletes an object or begins its termination; s.mu is held.
func (s *Server) remove(ctx context.Context, c *collection, old client.Object, req *resourcev1.DeleteRequest) (client.Object, bool) {
	obj := clone(old)
	finalizers := obj.GetFinalizers()
	for policy, name := range map[string]string{"Orphan": metav1.FinalizerOrphanDependents, "Foreground": metav1.FinalizerDeleteDependents} {
		if req.GetPropagationPolicy() == policy && !slices.Contains(finalizers, name) && old.GetDeletionTimestamp() == nil {
			finalizers = append(finalizers, name)
		}
	}
	obj.SetFinalizers(finalizers)
	grace := int64(0)
	switch o := obj.(type) {
	case *corev1.Pod:
		if o.Spec.NodeName != "" && o.Status.Phase != corev1.PodSucceeded && o.Status.Phase != corev1.PodFailed &&
			o.Spec.TerminationGracePeriodSeconds != nil {
			grace = *o.Spec.TerminationGracePeriodSeconds
		}
	case *corev1.Namespace:
		o.Status.Phase = corev1.NamespaceTerminating
	}
	if req.GracePeriodSeconds != nil && (grace > 0 || req.GetGracePeriodSeconds() == 0) {
		grace = req.GetGracePeriodSeconds()
	}
	if obj.GetDeletionTimestamp() == nil || old.GetDeletionGracePeriodSeconds() != nil && grace < *old.GetDeletionGracePeriodSeconds() {
		now := metav1.NewTime(time.Now().Add(time.Duration(grace) * time.Second).Truncate(time.Second))
		obj.SetDeletionTimestamp(&now)
		obj.SetDeletionGracePeriodSeconds(&grace)
		obj.SetGeneration(old.GetGeneration() + 1)
	}
	if ended(obj) {
		s.record(ctx, c, old, nil)
		obj = clone(old)
		obj.SetResourceVersion(strconv.FormatUint(s.revision, 10))
		return obj, true
	}
	if !reflect.DeepEqual(old, obj) {
		s.record(ctx, c, old, obj)
	}
	return obj, false
}
