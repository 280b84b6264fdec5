package clienttest

import (
	"context"
	"encoding/base64"
	"reflect"
	"sort"
	"strconv"
	"strings"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"keelson.dev/proto/client"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

// Get implements ResourceService.
func (s *Server) Get(_ context.Context, req *resourcev1.GetRequest) (*resourcev1.GetResponse, error) {
	ref := req.GetRef()
	if err := s.failure("Get", ref); err != nil {
		return nil, rpcError(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.collection(ref)
	if err != nil {
		return nil, rpcError(err)
	}
	obj, err := s.get(c, ref)
	if err != nil {
		return nil, rpcError(err)
	}
	if ref.GetSubresource() == "scale" {
		obj = scaleOf(obj)
	}
	a, err := viewed(obj, req.GetView())
	return &resourcev1.GetResponse{Object: a}, err
}

func scaleOf(obj client.Object) *autoscalingv1.Scale {
	scale := &autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{
		Name: obj.GetName(), Namespace: obj.GetNamespace(), UID: obj.GetUID(), ResourceVersion: obj.GetResourceVersion(),
	}}
	if r := part(obj, "Spec").FieldByName("Replicas"); r.IsValid() && !r.IsNil() {
		scale.Spec.Replicas = int32(r.Elem().Int()) //nolint:gosec // replicas are int32.
	}
	if r := part(obj, "Status").FieldByName("Replicas"); r.IsValid() {
		scale.Status.Replicas = int32(r.Int()) //nolint:gosec // replicas are int32.
	}
	if r := part(obj, "Spec").FieldByName("Selector"); r.IsValid() {
		switch selector := r.Interface().(type) {
		case *metav1.LabelSelector:
			scale.Status.Selector = metav1.FormatLabelSelector(selector)
		case map[string]string:
			scale.Status.Selector = labels.FormatLabels(selector)
		}
	}
	return scale
}

// filter is the selectors of a request.
type filter struct {
	namespace, name string
	labels          labels.Selector
	fields          fields.Selector
}

func newFilter(ref *resourcev1.Ref, labelSelector, fieldSelector string) (*filter, error) {
	l, err := labels.Parse(labelSelector)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	f, err := fields.ParseSelector(fieldSelector)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	return &filter{namespace: ref.GetNamespace(), name: ref.GetName(), labels: l, fields: f}, nil
}

func (f *filter) matches(obj client.Object) bool {
	if obj == nil || f.namespace != "" && obj.GetNamespace() != f.namespace || f.name != "" && obj.GetName() != f.name {
		return false
	}
	return f.labels.Matches(labels.Set(obj.GetLabels())) && f.fields.Matches(objectFields{obj})
}

// objectFields finds any field of an object by its JSON path.
type objectFields struct{ obj client.Object }

func (o objectFields) Has(path string) bool { return true }

func (o objectFields) Get(path string) string {
	v := reflect.ValueOf(o.obj).Elem()
	for name := range strings.SplitSeq(path, ".") {
		for v.Kind() == reflect.Pointer {
			if v.IsNil() {
				return ""
			}
			v = v.Elem()
		}
		if v.Kind() != reflect.Struct {
			return ""
		}
		v = jsonField(v, name)
		if !v.IsValid() {
			return ""
		}
	}
	switch v.Kind() {
	case reflect.String:
		return v.String()
	case reflect.Bool:
		return strconv.FormatBool(v.Bool())
	case reflect.Int, reflect.Int32, reflect.Int64:
		return strconv.FormatInt(v.Int(), 10)
	}
	return ""
}

func jsonField(v reflect.Value, name string) reflect.Value {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if tag == name {
			return v.Field(i)
		}
	}
	return reflect.Value{}
}

// selected is the matching objects ordered by namespace and name; s.mu is held.
func (c *collection) selected(f *filter) []client.Object { return selected(c.objects, f) }

func selected(objects map[client.Key]client.Object, f *filter) []client.Object {
	var out []client.Object
	for _, obj := range objects {
		if f.matches(obj) {
			out = append(out, obj)
		}
	}
	sort.Slice(out, func(i, j int) bool { return orderKey(out[i]) < orderKey(out[j]) })
	return out
}

func orderKey(obj client.Object) string { return obj.GetNamespace() + "/" + obj.GetName() }

const defaultPage = 500

// List implements ResourceService.
func (s *Server) List(req *resourcev1.ListRequest, stream grpc.ServerStreamingServer[resourcev1.ListResponse]) error {
	if err := s.failure("List", req.GetRef()); err != nil {
		return rpcError(err)
	}
	pages, err := s.list(req)
	if err != nil {
		return rpcError(err)
	}
	for _, p := range pages {
		if err := stream.Send(p); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) list(req *resourcev1.ListRequest) ([]*resourcev1.ListResponse, error) {
	f, err := newFilter(req.GetRef(), req.GetLabelSelector(), req.GetFieldSelector())
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.collection(req.GetRef())
	if err != nil {
		return nil, err
	}
	objs := c.selected(f)
	revision := strconv.FormatUint(s.revision, 10)
	if req.GetContinue() != "" {
		// A token is the revision of the first page and the last key sent. The
		// collection as it is now serves the rest, so a change between two pages
		// may show: tests do not write between pages.
		token, err := base64.RawURLEncoding.DecodeString(req.GetContinue())
		rv, after, ok := strings.Cut(string(token), " ")
		if err != nil || !ok {
			return nil, apierrors.NewBadRequest("continue key is not valid")
		}
		revision = rv
		objs = objs[sort.Search(len(objs), func(i int) bool { return orderKey(objs[i]) > after }):]
	}
	next, remaining := "", int64(0)
	if limit := req.GetLimit(); limit > 0 && int64(len(objs)) > limit {
		remaining = int64(len(objs)) - limit
		objs = objs[:limit]
		next = base64.RawURLEncoding.EncodeToString([]byte(revision + " " + orderKey(objs[limit-1])))
	}
	size := int(req.GetPageSize())
	if size <= 0 {
		size = defaultPage
	}
	var pages []*resourcev1.ListResponse
	for first := true; first || len(objs) > 0; first = false {
		page := &resourcev1.ListResponse{ResourceVersion: revision}
		n := min(size, len(objs))
		for _, obj := range objs[:n] {
			a, err := viewed(obj, req.GetView())
			if err != nil {
				return nil, err
			}
			page.Items = append(page.Items, a)
		}
		objs = objs[n:]
		pages = append(pages, page)
	}
	last := pages[len(pages)-1]
	last.Continue, last.RemainingItemCount = next, remaining
	return pages, nil
}

// Watch implements ResourceService.
func (s *Server) Watch(req *resourcev1.WatchRequest, stream grpc.ServerStreamingServer[resourcev1.WatchResponse]) error {
	if err := s.failure("Watch", req.GetRef()); err != nil {
		return rpcError(err)
	}
	f, err := newFilter(req.GetRef(), req.GetLabelSelector(), req.GetFieldSelector())
	if err != nil {
		return rpcError(err)
	}
	first, c, at, err := s.startWatch(req, f)
	if err != nil {
		return rpcError(err)
	}
	s.mu.Lock()
	cut := s.cut
	s.mu.Unlock()
	for _, resp := range first {
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
	for {
		s.mu.Lock()
		if at < c.compacted {
			s.mu.Unlock()
			return rpcError(expired())
		}
		i := sort.Search(len(c.log), func(i int) bool { return c.log[i].revision > at })
		news, grown := c.log[i:len(c.log):len(c.log)], c.grown
		s.mu.Unlock()
		for _, ch := range news {
			at = ch.revision
			resp, err := f.event(ch, req.GetView())
			if err != nil {
				return err
			}
			if resp == nil {
				continue
			}
			select {
			case <-cut:
				return errCut()
			default:
			}
			if err := stream.Send(resp); err != nil {
				return err
			}
		}
		if len(news) > 0 {
			continue
		}
		select {
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-cut:
			return errCut()
		case <-grown:
		}
	}
}

func errCut() error { return status.Error(codes.Unavailable, "the connection was cut") }

func expired() error { return apierrors.NewResourceExpired("too old resource version") }

// startWatch finds where a watch starts and the initial state it sends.
func (s *Server) startWatch(req *resourcev1.WatchRequest, f *filter) ([]*resourcev1.WatchResponse, *collection, uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.collection(req.GetRef())
	if err != nil {
		return nil, nil, 0, err
	}
	if req.GetSendInitialEvents() && s.noStream {
		return nil, nil, 0, apierrors.NewBadRequest("sendInitialEvents is forbidden for watch")
	}
	if rv := req.GetResourceVersion(); rv != "" && rv != "0" && !req.GetSendInitialEvents() {
		at, err := strconv.ParseUint(rv, 10, 64)
		if err != nil {
			return nil, nil, 0, apierrors.NewBadRequest("invalid resource version " + strconv.Quote(rv))
		}
		if at < c.compacted {
			return nil, nil, 0, expired()
		}
		return nil, c, at, nil
	}
	first, err := initial(c.objects, f, req.GetView())
	if err != nil {
		return nil, nil, 0, err
	}
	if req.GetSendInitialEvents() {
		first = append(first, initialEnd(s.revision))
	}
	return first, c, s.revision, nil
}

// initial returns the events that report the objects which a filter selects.
func initial(objects map[client.Key]client.Object, f *filter, v resourcev1.View) ([]*resourcev1.WatchResponse, error) {
	var out []*resourcev1.WatchResponse
	for _, obj := range selected(objects, f) {
		a, err := viewed(obj, v)
		if err != nil {
			return nil, err
		}
		out = append(out, &resourcev1.WatchResponse{
			Type: resourcev1.WatchResponse_TYPE_ADDED, Object: a, ResourceVersion: obj.GetResourceVersion(),
		})
	}
	return out, nil
}

func initialEnd(revision uint64) *resourcev1.WatchResponse {
	return &resourcev1.WatchResponse{
		Type: resourcev1.WatchResponse_TYPE_BOOKMARK, ResourceVersion: strconv.FormatUint(revision, 10), InitialEventsEnd: true,
	}
}

// InitialState returns the initial state that a watch would have sent at an earlier revision,
// as an apiserver that lags behind sends it now. It fails if Compact has forgotten that
// revision.
func (s *Server) InitialState(req *resourcev1.WatchRequest, revision uint64) ([]*resourcev1.WatchResponse, error) {
	f, err := newFilter(req.GetRef(), req.GetLabelSelector(), req.GetFieldSelector())
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.collection(req.GetRef())
	if err != nil {
		return nil, err
	}
	if c.compacted > 0 {
		return nil, expired()
	}
	objects := map[client.Key]client.Object{}
	for _, ch := range c.log {
		switch {
		case ch.revision > revision:
		case ch.obj == nil:
			delete(objects, client.KeyOf(ch.old))
		default:
			objects[client.KeyOf(ch.obj)] = ch.obj
		}
	}
	out, err := initial(objects, f, req.GetView())
	return append(out, initialEnd(revision)), err
}

// event is what a watcher with this filter sees of a change; nil if nothing.
func (f *filter) event(ch change, v resourcev1.View) (*resourcev1.WatchResponse, error) {
	before, now := f.matches(ch.old), f.matches(ch.obj)
	resp := &resourcev1.WatchResponse{ResourceVersion: strconv.FormatUint(ch.revision, 10), Traceparent: ch.traceparent}
	obj := ch.obj
	switch {
	case now && !before:
		resp.Type = resourcev1.WatchResponse_TYPE_ADDED
	case now:
		resp.Type = resourcev1.WatchResponse_TYPE_MODIFIED
	case before:
		resp.Type = resourcev1.WatchResponse_TYPE_DELETED
		obj = clone(ch.old)
		obj.SetResourceVersion(resp.ResourceVersion)
	default:
		return nil, nil
	}
	var err error
	resp.Object, err = viewed(obj, v)
	return resp, err
}
