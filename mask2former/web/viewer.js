// The results of an image: hovering names a region, the legend hides classes, buttons download files.
// Names come from files that others wrote. They become text nodes, never HTML.

const message = element.querySelector('.message')
const legend = element.querySelector('.legend')
const views = element.querySelector('.views')
const figures = {} // by task

function node(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties)
  made.append(...children)
  return made
}

function show(value) {
  if (!value) return
  message.classList.toggle('error', Boolean(value.error))
  message.textContent = value.error || value.message
  if (value.error) return // what was shown before stays
  legend.replaceChildren(...value.legend.map(entry), ...(value.legend.length > 1 ? [allButton(value.legend)] : []))
  views.replaceChildren(...value.views.map(view => update(figures[view.task] ??= newFigure(), view)))
}

// The legend

function entry(item) {
  const swatch = node('span', { className: 'swatch' })
  swatch.style.background = item.color
  const button = node('button', { className: 'entry', onclick: () => toggle([item], !item.hidden) }, swatch, item.name)
  button.setAttribute('aria-pressed', !item.hidden)
  return button
}

function allButton(items) {
  const shown = items.some(item => !item.hidden)
  const properties = { className: 'entry', onclick: () => toggle(items, shown) }
  return node('button', properties, shown ? 'Hide all' : 'Show all')
}

function toggle(items, hidden) {
  for (const item of items) item.hidden = hidden
  const all = props.value.legend
  legend.replaceChildren(...all.map(entry), ...(all.length > 1 ? [allButton(all)] : []))
  trigger('toggle', { hidden: all.filter(item => item.hidden).map(item => item.id) })
}

// The views

function newFigure() {
  const figure = {
    title: node('strong'), note: node('span', { className: 'note' }), image: node('img'),
    light: node('canvas'), tip: node('span', { className: 'tip', hidden: true }), files: node('div', { className: 'files' }),
  }
  const wide = node('button', { className: 'wide', title: 'Enlarge', textContent: '⤢' })
  const box = node('div', { className: 'box' }, figure.image, figure.light, figure.tip)
  figure.root = node('figure', {}, node('figcaption', {}, figure.title, figure.note, wide), box, figure.files)
  wide.onclick = () => figure.root.classList.toggle('enlarged')
  box.onpointermove = event => event.pointerType === 'mouse' && point(figure, event)
  box.onclick = event => point(figure, event) // a tap
  box.onpointerleave = event => event.pointerType === 'mouse' && mark(figure, 0)
  return figure
}

function update(figure, view) {
  figure.view = view
  figure.title.textContent = view.title
  figure.note.textContent = view.note || ''
  figure.image.src = view.image
  figure.image.alt = `${view.title}: ${view.note || 'the image'}`
  figure.root.dataset.task = view.task
  figure.files.replaceChildren(...view.files.map(file => fileButton(view.task, file)))
  figure.map = null
  mark(figure, 0)
  if (view.numbers) decode(view).then(map => { if (figure.view === view) figure.map = map })
  return figure.root
}

// The number of the region at each pixel is R + 256 G + 65536 B.
async function decode(view) {
  const image = node('img', { src: view.numbers })
  await image.decode()
  const { width, height } = image
  const context = node('canvas', { width, height }).getContext('2d')
  context.drawImage(image, 0, 0)
  const { data } = context.getImageData(0, 0, width, height)
  return { width, height, numbers: new Uint32Array(data.buffer).map(pixel => pixel & 0xffffff) }
}

function point(figure, event) {
  if (!figure.map) return
  const { map, image, tip } = figure
  const box = image.getBoundingClientRect()
  const [x, y] = [event.clientX - box.left, event.clientY - box.top]
  const column = Math.floor(x / box.width * map.width)
  const number = map.numbers[Math.floor(y / box.height * map.height) * map.width + column] || 0
  mark(figure, number)
  const [right, above] = [box.width - tip.offsetWidth, y - tip.offsetHeight - 12]
  tip.style.left = `${Math.max(0, Math.min(x - tip.offsetWidth / 2, right))}px`
  tip.style.top = `${above < 0 ? y + 20 : above}px`
}

// Name a region and darken the others; 0 is none.
function mark(figure, number) {
  if (figure.marked === number) return
  figure.marked = number
  const { map, light, tip, view } = figure
  tip.hidden = light.hidden = !number
  if (!number) return
  tip.textContent = view.regions[number - 1]
  light.width = map.width
  light.height = map.height
  const shade = new ImageData(map.width, map.height)
  new Uint32Array(shade.data.buffer).set(map.numbers.map(other => other === number ? 0 : 0x8c000000))
  light.getContext('2d').putImageData(shade, 0, 0)
}

// Files

function fileButton(task, { kind, words }) {
  const button = node('button', { className: 'file', textContent: `↓ ${words}` })
  button.onclick = async () => {
    button.disabled = true
    try {
      const file = await server.file({ session: props.value.session, task, kind })
      if (file.error) throw file.error
      const bytes = Uint8Array.from(atob(file.content), letter => letter.charCodeAt(0))
      const url = URL.createObjectURL(new Blob([bytes]))
      node('a', { href: url, download: file.name }).click()
      setTimeout(() => URL.revokeObjectURL(url), 60000)
    } catch (error) {
      show({ error: `${error}` })
    } finally {
      button.disabled = false
    }
  }
  return button
}

watch('value', () => show(props.value))
show(props.value)
