package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"keelson.dev/services/apiserver/internal/authz"
	"keelson.dev/services/apiserver/internal/front/rest"
	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/snapshot"
)

// snapshotCommand runs "apiserver snapshot …" and returns the exit code.
func snapshotCommand(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return snapshot.Command(ctx, args, resource.NewTable(kind.All()...), os.Stdout, os.Stderr)
}

// newSnapshots returns the service that saves both stores.
func newSnapshots(cfg *config, st *state, rights *authz.Authorizers) *snapshot.Service {
	return snapshot.NewService(snapshot.ServiceConfig{
		Lasting: st.lasting.Store, Transient: st.transient.Store, Authorizer: rights,
		Apiserver: cfg.name, Program: rest.DefaultVersion().GitVersion,
	})
}
