package store

import (
	"errors"
	"runtime"
	"sync"

	"go.etcd.io/bbolt"
)

// loaded is a row on its way from disk to memory. key and value are in the file, and valid only
// while it is visited.
type loaded struct {
	t          *table
	key, value []byte
	row        any
	err        error // of decoding
}

// errStopped ends the reading of rows that nobody visits.
var errStopped = errors.New("not visited")

// batchRows is how many rows are decoded at a time.
const batchRows = 512

// decoded visits all rows in order, decoded: several batches at a time, which is most of what
// starting from a large registry takes.
func (d *disk) decoded(visit func(loaded) error) error {
	return d.db.View(func(tx *bbolt.Tx) error { return decoded(tx, visit) })
}

func decoded(tx *bbolt.Tx, visit func(loaded) error) error {
	type batch struct {
		rows []loaded
		done chan struct{} // closed when they are decoded
	}
	var (
		batches = make(chan *batch, runtime.GOMAXPROCS(0))
		stop    = make(chan struct{}) // closed when nobody visits any more
		failed  error
		once    = newAlike()
		reading sync.WaitGroup // whoever looks into the file
	)
	defer reading.Wait()
	reading.Go(func() {
		defer close(batches)
		var next []loaded
		send := func() error {
			b := &batch{next, make(chan struct{})}
			next = make([]loaded, 0, batchRows)
			select {
			case batches <- b:
			case <-stop:
				return errStopped
			}
			reading.Go(func() {
				defer close(b.done)
				for i := range b.rows {
					r := &b.rows[i]
					r.row, r.err = r.t.decode(r.value, once)
				}
			})
			return nil
		}
		failed = rows(tx, func(t *table, key, value []byte) error {
			next = append(next, loaded{t: t, key: key, value: value})
			if len(next) < batchRows {
				return nil
			}
			return send()
		})
		if failed == nil {
			failed = send()
		}
	})
	var err error
	for b := range batches {
		<-b.done
		for i := 0; err == nil && i < len(b.rows); i++ {
			if err = visit(b.rows[i]); err != nil {
				close(stop)
			}
		}
	}
	if err == nil {
		err = failed
	}
	return err
}
