package store

// State is what [Writer.PutState] last wrote under that name, or nil.
func (r *Reader) State(name string) []byte {
	if row, ok := r.first(tableStates, "id", name).(*stateRow); ok {
		return row.Value
	}
	return nil
}

// PutState remembers something for a part of the server: nobody is told of it, no index
// grows, and it is in no API.
func (w *Writer) PutState(name string, value []byte) error {
	return w.put(tableStates, &stateRow{Name: name, Value: value})
}
