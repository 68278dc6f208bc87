package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

const (
	// sayEvery is how often a supervisor says that it lives.
	sayEvery = 5 * time.Second
	// fewer is how many times fewer supervisors there are than are stood for: each says so as many
	// times as often. Connections of those that only say that they live cost memory, not CPU.
	fewer = 10
)

// reports are what supervisors that have nothing to tell say, in reports.
func reports(ctx context.Context, w *world, l *line) error {
	return chatter(ctx, w, l, func(ctx context.Context, i int) (func() error, func(), error) {
		c, end, err := w.reporter(ctx, i)
		if err != nil {
			return nil, nil, err
		}
		r := telemetry.Report{Session: 1}
		return func() error {
			r.Seq++
			r.At = time.Now()
			r.Alive = &telemetry.Alive{Port: port(i), Checks: []telemetry.Check{{ID: alive(i), Status: "passing"}}}
			return c.Send(r)
		}, end, nil
	})
}

// reporter is the stream of reports of one supervisor, and what ends it.
func (w *world) reporter(ctx context.Context, i int) (*telemetry.Client, func(), error) {
	conn, err := grpc.NewClient(w.mesh.GRPCAddr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	c, err := telemetry.Connect(ctx, conn, node(i), proxyID(i))
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	return c, func() { conn.Close() }, nil
}

// requests are what they would say with requests of their own: a look whether they are
// registered, a pulse of one check, and a report.
func requests(ctx context.Context, w *world, l *line) error {
	return chatter(ctx, w, l, func(ctx context.Context, i int) (func() error, func(), error) {
		c, end, err := w.reporter(ctx, i)
		if err != nil {
			return nil, nil, err
		}
		own := &http.Client{Transport: &http.Transport{}}
		call := func(method, path, body string) error {
			req, err := http.NewRequestWithContext(ctx, method, w.mesh.HTTPAddr+path+"?node="+node(i), strings.NewReader(body))
			if err != nil {
				return err
			}
			res, err := own.Do(req)
			if err != nil {
				return err
			}
			defer res.Body.Close()
			if _, err = io.Copy(io.Discard, res.Body); err == nil && res.StatusCode != http.StatusOK {
				err = fmt.Errorf("%s %s: %s", method, path, res.Status)
			}
			return err
		}
		r := telemetry.Report{Session: 1}
		return func() error {
				r.Seq++
				r.At = time.Now()
				if err := c.Send(r); err != nil {
					return err
				}
				if err := call(http.MethodGet, "/v1/agent/service/"+proxyID(i), ""); err != nil {
					return err
				}
				return call(http.MethodPut, "/v1/agent/check/update/"+alive(i), `{"Status":"passing","Output":""}`)
			}, func() {
				own.CloseIdleConnections()
				end()
			}, nil
	})
}

// chatter lets supervisors say that they live at the rate of all. begin gives how one says so, and
// how it ends.
func chatter(ctx context.Context, w *world, l *line, begin func(context.Context, int) (say func() error, end func(), err error)) error {
	n := max(1, w.Streams/fewer)
	life, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer func() { cancel(); wg.Wait() }()
	var said atomic.Int64
	failed := make(chan error, n)
	every := sayEvery * time.Duration(n) / time.Duration(w.Streams)
	var ready sync.WaitGroup
	ready.Add(n)
	for i := range n {
		wg.Go(func() {
			say, end, err := begin(life, i)
			if err != nil {
				ready.Done()
				failed <- err
				return
			}
			defer end()
			if err = say(); err != nil {
				failed <- err
			}
			ready.Done()
			tick := time.NewTicker(every)
			defer tick.Stop()
			for err == nil {
				select {
				case <-life.Done():
					return
				case <-tick.C:
					if err = say(); err != nil && life.Err() == nil {
						failed <- err
					}
					said.Add(1)
				}
			}
		})
	}
	ready.Wait()
	before, err := w.cpu()
	if err != nil {
		return err
	}
	began, from := time.Now(), said.Load()
	select {
	case <-time.After(w.Duration):
	case err := <-failed:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
	after, err := w.cpu()
	l.Seconds, l.Messages, l.CPU = time.Since(began).Seconds(), said.Load()-from, (after - before).Seconds()
	if l.Messages == 0 {
		return fmt.Errorf("nobody has said anything in %v", w.Duration)
	}
	// As if each had come at its time, however late the machine was.
	l.Cores = l.CPU / float64(l.Messages) * float64(w.Streams) / sayEvery.Seconds()
	return err
}
