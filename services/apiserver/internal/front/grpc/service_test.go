package grpc_test

import (
	"context"
	"crypto/x509"
	"net"
	"strconv"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clientconformance"
	coordinationv1 "keelson.dev/proto/keelson/coordination/v1"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	"keelson.dev/services/apiserver/internal/authz"
	"keelson.dev/services/apiserver/internal/fence"
	"keelson.dev/services/apiserver/internal/fieldmanager"
	front "keelson.dev/services/apiserver/internal/front/grpc"
	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store/memory"
	"keelson.dev/services/apiserver/internal/watchcache"
	"keelson.dev/services/internal/rpc"
	"keelson.dev/services/internal/telemetry"
)

type admin struct{}

func (admin) Authenticate(context.Context, []*x509.Certificate, string) (request.User, error) {
	return request.User{Name: "admin", Groups: []string{"system:masters", "system:authenticated"}}, nil
}

// historyEvents is how many events watches can resume from.
const historyEvents = 200

// serve starts a server on loopback and returns its address.
func serve(tb testing.TB, change ...func(*front.Service)) string {
	tb.Helper()
	if _, err := telemetry.Start(context.Background(), telemetry.Config{Service: "apiserver"}); err != nil {
		tb.Fatal(err)
	}
	st := memory.New()
	table := resource.NewTable(kind.All()...)
	var stored []*resource.Kind
	for _, k := range table.Kinds() {
		if k.StorePrefix != "" && k.StoredAs == nil {
			stored = append(stored, k)
		}
	}
	cache := watchcache.New(watchcache.Config{Store: st, Kinds: stored, HistoryEvents: historyEvents, HistoryMin: 10})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, 2)
	go func() { _ = cache.Run(ctx); done <- struct{}{} }()
	<-cache.Ready()
	api := pipeline.New(pipeline.Config{Table: table, Lasting: pipeline.Place{Store: st, Cache: cache}, Fields: fieldmanager.New(table)})
	server := rpc.NewServer(rpc.ServerConfig{Authenticate: front.Authentication(admin{}, authz.New()), Root: front.Writes, Codec: front.NewCodec()})
	service := front.New(api)
	for _, c := range change {
		c(service)
	}
	resourcev1.RegisterResourceServiceServer(server, service)
	coordinationv1.RegisterFenceServiceServer(server, front.NewFenceService(fence.New(api, table, st, st)))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	go func() { _ = server.Serve(ctx, l); done <- struct{}{} }()
	tb.Cleanup(func() {
		cancel()
		<-done
		<-done
		st.Close()
	})
	return l.Addr().String()
}

func dial(tb testing.TB, address string) *client.Client {
	tb.Helper()
	c, err := client.Dial(client.Config{Endpoints: []string{address}, UserAgent: "conformance/1", DialOptions: []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

func TestConformance(t *testing.T) {
	address := serve(t)
	c := dial(t, address)
	clientconformance.Run(t, clientconformance.Config{
		Client: c, Namespace: "default", Endpoint: address,
		Dial: func(t *testing.T, a string) *client.Client { return dial(t, a) },
		Compact: func() { // enough changes to push everything else out of the history
			maps := client.For[*corev1.ConfigMap](c)
			for i := range historyEvents + 1 {
				obj := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "filler" + strconv.Itoa(i), Namespace: "elsewhere"}}
				if _, err := maps.Create(t.Context(), obj); err != nil && !apierrors.IsAlreadyExists(err) {
					t.Error(err)
				}
				if err := maps.Delete(t.Context(), obj.Namespace, obj.Name); err != nil {
					t.Error(err)
				}
			}
		},
	})
}
